// SPDX-License-Identifier: LGPL-2.1-or-later
//! Tensors in Python.

use std::path::PathBuf;
use std::process::Command;

use testing::{TestDir, root, skip};

use crate::support::launch;

/// PyTorch and CuPy read the publisher's memory in place.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn python_takes_tensors_without_copy() {
    let test = TestDir::slow("tensor");
    let python = std::env::var("PYTHON").unwrap_or("python3".into());
    let root = std::env::var_os("CUFRAMES_BUILT").map_or(root().to_owned(), PathBuf::from);
    let script = root.join("examples/python/tensor.py");
    let _publisher = launch(
        &test,
        "videotestsrc is-live=true pattern=white ! video/x-raw,format=NV12,width=640,height=360 \
         ! cudaupload ! cuframessink key=cam1",
    );
    for library in ["torch", "cupy"] {
        let has = Command::new(&python).args(["-c", &format!("import {library}")]).status();
        if !has.is_ok_and(|status| status.success()) {
            skip(&format!("{python} has no {library}"));
            continue;
        }
        let mut command = test.command(&python);
        let output = command.arg(&script).args(["cam1", "20", library]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.matches("(360, 640) mean 235.000 no copy").count(), 20, "{output:?}");
    }
}
