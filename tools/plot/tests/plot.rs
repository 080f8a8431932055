// SPDX-License-Identifier: LGPL-2.1-or-later
//! The plots are drawn from results that the benchmark wrote.

use std::path::Path;
use std::process::Command;

fn plot(results: &Path) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_plot")).arg(results).output().unwrap()
}

#[test]
fn plots_have_one_series_for_each_system() {
    let dir = std::env::temp_dir().join(format!("cuframes-plot-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let results = dir.join("results.json");
    // Three systems, one of which failed.
    let text = r#"{"results": [
        {"system": "fast", "size": "320x240", "fps": 30, "cameras": 1, "subscribers": 1,
         "latency_us": {"percentiles": [10.0, 20.0, 40.0]}, "busy_cpus": {"median": 0.5}, "recovery_ms": {"least": 3.0, "median": 4.0, "most": 9.0}},
        {"system": "fast", "size": "320x240", "fps": 30, "cameras": 1, "subscribers": 2,
         "latency_us": {"percentiles": [11.0, 21.0, 41.0]}, "busy_cpus": {"median": 0.7}},
        {"system": "slow", "size": "320x240", "fps": 30, "cameras": 1, "subscribers": 1,
         "latency_us": {"percentiles": [30.0, 60.0, 90.0]}, "busy_cpus": {"median": 0.9},
         "recovery_ms": {"least": 5.0, "median": 5.0, "most": 8.0}},
        {"system": "broken", "size": "320x240", "fps": 30, "cameras": 1, "subscribers": 1,
         "latency_us": null, "busy_cpus": null}]}"#;
    std::fs::write(&results, text).unwrap();
    let output = plot(&results);
    assert!(output.status.success(), "{output:?}");
    for file in ["latency.svg", "cpu.svg", "recovery.svg"] {
        let svg = std::fs::read_to_string(dir.join(file)).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("fast") && svg.contains("slow"), "{file}");
        assert!(!svg.contains("broken"), "{file} names a system without points");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn missing_file_is_an_error() {
    let output = plot(Path::new("/nonexistent/results.json"));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/results.json"));
}
