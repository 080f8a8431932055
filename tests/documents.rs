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

/// The text of all sources.
fn sources(dir: &Path) -> String {
    let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    let text = |path: &std::path::PathBuf| match path.is_dir() {
        true => sources(path),
        false => std::fs::read_to_string(path).unwrap(),
    };
    entries.iter().map(text).collect()
}

/// What people search for is what they are shown.
#[test]
fn the_errors_that_are_explained_are_those_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/troubleshooting.md")).unwrap();
    let sources = sources(&root.join("src"));
    let quotes: Vec<_> =
        page.split("**`").skip(1).map(|q| q.split("`**").next().unwrap()).collect();
    assert!(quotes.len() > 15, "{quotes:?}");
    for quote in quotes {
        // What differs stands for itself, and what is left is too short to be searched for.
        let parts: Vec<_> = quote.split('…').map(str::trim).filter(|p| p.len() > 4).collect();
        assert!(!parts.is_empty(), "{quote}");
        for part in parts {
            assert!(sources.contains(part), "'{part}' of '{quote}' is in no source");
        }
    }
}
