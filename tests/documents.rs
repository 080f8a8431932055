//! What is written down is what is there.

use std::path::Path;
use std::process::Command;

#[test]
fn the_element_documentation_is_up_to_date() {
    let built =
        std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/document");
    let output = Command::new(built).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let written =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/elements.md")).unwrap();
    assert!(output.stdout == written, "docs/elements.md is out of date: run make docs");
}
