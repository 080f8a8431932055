// SPDX-License-Identifier: LGPL-2.1-or-later
//! The benchmark runs, and writes what docs/benchmarks.md describes. No test depends on how fast anything is.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Runs the benchmark with elements behind each source. Returns its log, its results, and the folder of its
/// pictures.
fn run(name: &str, words: &str, behind: &str) -> (String, Value, PathBuf) {
    run_by(name, words, behind, None)
}

/// As [`run`], with a launcher for the processes of the run.
fn run_by(
    name: &str,
    words: &str,
    behind: &str,
    runner: Option<&Path>,
) -> (String, Value, PathBuf) {
    // Systems with a camera are skipped where it was not built.
    testing::built("camera");
    let out = std::env::temp_dir().join(format!("cuframes-test-{name}-{}", std::process::id()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args(["--behind", behind, "--out"]).arg(&out).args(words.split(' '));
    command.envs(runner.map(|path| ("ON_GPU", path)));
    let output = command.output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    let text = std::fs::read_to_string(out.join("results.json")).unwrap();
    (log, serde_json::from_str(&text).unwrap(), out)
}

/// Returns the result of a system, of 320x240 at 120 frames per second.
fn result<'a>(all: &'a Value, system: &str, subscribers: u64) -> &'a Value {
    let mut results = all["results"].as_array().unwrap().iter();
    let is = |r: &&Value| {
        let picture = (&r["size"], &r["fps"]) == (&"320x240".into(), &120.into());
        picture && r["system"] == system && r["subscribers"] == subscribers
    };
    results.find(is).expect(system)
}

#[test]
fn short_run_has_all_figures() {
    let (log, all, out) = run(
        "bench",
        "--frames 10 --size 320x240,640x480 --fps 120,0 --subscribers 1,2 --rounds 1 --lives 1 --idle 1 \
         alone cuframes unixfd",
        "videoscale",
    );
    assert!(all["machine"]["cores"].as_u64() > Some(0));
    assert!(all["machine"]["kernel"].as_str().is_some_and(|k| !k.is_empty()));
    assert!(all["versions"]["gstreamer"].as_str().is_some_and(|v| v.starts_with("GStreamer")));
    let results = all["results"].as_array().unwrap();
    for subscribers in [1, 2] {
        check_rounds(result(&all, "cuframes", subscribers), subscribers);
    }
    // Every size at every rate.
    let ours = results.iter().filter(|r| r["system"] == "cuframes");
    assert_eq!(ours.filter(|r| r["frames"].as_u64() > Some(0)).count(), 2 * 2 * 2);
    assert!(results.iter().all(|r| r["failed"].is_null() && r["bad_ends"] == 0), "{log}");
    check_other_turns(result(&all, "cuframes", 1));
    assert!(result(&all, "alone", 0)["publisher_cpu_us_per_frame"]["median"].is_number());
    // Systems that the machine lacks are named.
    let skipped = all["skipped"].as_object().unwrap();
    let measured = results.iter().any(|r| r["system"] == "unixfd");
    assert!(measured != skipped.contains_key("unixfd"), "{log}");
    check_model(all["model"].as_array().unwrap());
    std::fs::remove_dir_all(out).unwrap();
}

fn check_rounds(result: &Value, subscribers: u64) {
    // On a busy machine frames may be lost. They are never torn or repeated.
    assert_eq!((&result["torn"], &result["repeated"]), (&0.into(), &0.into()), "{result}");
    let lost = result["lost"].as_u64().unwrap();
    assert_eq!(result["frames"].as_u64().unwrap() + lost, 10 * subscribers, "{result}");
    for figure in [
        "publisher_cpu_us_per_frame",
        "subscriber_cpu_us_per_frame",
        "publisher_switches_per_frame",
        "subscriber_switches_per_frame",
        "memory_mib",
        "publisher_shared_mib",
        "published_per_s",
        "received_per_s",
        "busy_cpus",
    ] {
        assert!(result[figure]["median"].as_f64() > Some(0.0), "{figure}: {result}");
    }
    for quantile in ["p50", "p95", "p99", "max"] {
        assert!(result["latency_us"][quantile]["median"].as_f64() > Some(0.0), "{result}");
    }
}

fn check_other_turns(result: &Value) {
    for step in ["enqueue", "publish", "ring", "wake", "claim", "ready", "wrap", "push"] {
        assert!(result["steps_us"][step]["p50"].as_f64() > Some(0.0), "{step}: {result}");
    }
    assert!(result["idle_per_s"]["subscriber_cpu_us"].is_number(), "{result}");
    assert!(result["first_frame_ms"]["median"].as_f64() > Some(0.0), "{result}");
    assert!(result["recovery_ms"]["median"].is_number(), "{result}");
    assert_eq!(result["restarts"], Value::from(vec![0]), "the source was not started again");
}

fn check_model(model: &[Value]) {
    let find = |of: &str| {
        let is = |m: &&Value| m["system"] == "cuframes" && m["of"] == of;
        model.iter().find(is).unwrap()
    };
    let publisher = find("publisher");
    assert!(publisher["sum"]["subscribers"].is_number(), "{publisher}");
    let memory = find("memory");
    assert!(memory["sum"]["cameras · subscribers"].as_f64() > Some(0.0), "{memory}");
}

/// Each camera has a publisher of its own, all cameras share one, or each subscriber decodes all of them.
#[test]
fn several_cameras_are_measured() {
    let words = "--frames 10 --size 320x240 --cameras 1,2 --rounds 1 --lives 0 --idle 0 --no-steps --no-trace \
                 --settle 1 cuframes decode-all decode-shared decode-together";
    let (log, all, out) = run("cameras", words, "");
    for system in ["cuframes", "decode-all", "decode-shared", "decode-together"] {
        if !all["skipped"][system].is_null() {
            continue;
        }
        for cameras in [1, 2] {
            let mut results = all["results"].as_array().unwrap().iter();
            let result = results.find(|r| r["system"] == system && r["cameras"] == cameras);
            let result = result.expect(&log);
            let lost = result["lost"].as_u64().unwrap();
            assert!(result["frames"].as_u64().unwrap() + lost >= 10 * cameras, "{result}");
            let crosses = system != "decode-all";
            assert_eq!(result["latency_us"]["p50"].is_object(), crosses, "{result}");
        }
    }
    let model = all["model"].as_array().unwrap();
    assert!(model.iter().any(|m| m["of"] == "memory" && m["sum"]["cameras"].is_number()));
    std::fs::remove_dir_all(out).unwrap();
}

/// Figures of the frames before the failure would look like any others.
#[test]
fn aborted_turn_is_no_result() {
    let words =
        "--frames 10 --size 320x240 --rounds 1 --lives 0 --idle 0 --no-steps --no-trace cuframes";
    let (log, all, out) = run("breaks-off", words, "identity error-after=35");
    let result = &all["results"][0];
    assert!(result["failed"].as_str().is_some_and(|why| !why.is_empty()), "{log}");
    assert_eq!(result["frames"], 0, "{result}");
    std::fs::remove_dir_all(out).unwrap();
}

/// A source that crashes when it is stopped has reported all its figures. The crash is a result as well.
#[test]
fn failed_processes_are_counted() {
    let runner = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ends-badly.sh");
    let words = "--frames 10 --size 320x240 --subscribers 2 --rounds 1 --lives 0 --idle 0 --no-steps --no-trace \
                 cuframes";
    let (log, all, out) = run_by("bad-ends", words, "", Some(&runner));
    let result = &all["results"][0];
    assert_eq!((&result["bad_ends"], &result["failed"]), (&3.into(), &Value::Null), "{log}");
    assert!(log.contains("a process ended badly: exit status: 3"), "{log}");
    std::fs::remove_dir_all(out).unwrap();
}
