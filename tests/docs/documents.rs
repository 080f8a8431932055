// SPDX-License-Identifier: LGPL-2.1-or-later
//! The documents agree with the sources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use testing::root;

/// Returns the text of all sources.
fn sources(dir: &Path) -> String {
    let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    let text = |path: &PathBuf| match path.is_dir() {
        true => sources(path),
        false => std::fs::read_to_string(path).unwrap_or_default(),
    };
    entries.iter().map(text).collect()
}

/// Users search the page for the error text that they got.
#[test]
fn explained_errors_are_in_sources() {
    let page = std::fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let sources: String = ["src", "crates"].map(|dir| sources(&root().join(dir))).concat();
    let quotes: Vec<_> =
        page.split("**`").skip(1).map(|q| q.split("`**").next().unwrap()).collect();
    assert!(quotes.len() > 15, "{quotes:?}");
    for quote in quotes {
        // An ellipsis replaces variable parts. Short remains are not searched.
        let parts: Vec<_> = quote.split('…').map(str::trim).filter(|p| p.len() > 4).collect();
        assert!(!parts.is_empty(), "{quote}");
        for part in parts {
            assert!(sources.contains(part), "'{part}' of '{quote}' is in no source");
        }
    }
}

/// Returns the names in `SYNC(name)` comments, with the number of their occurrences.
fn sync_names(text: &str) -> BTreeMap<&str, usize> {
    let mut names = BTreeMap::new();
    for part in text.split("SYNC(").skip(1) {
        let name = part.split(')').next().unwrap();
        // Not the search command of correctness.md.
        if name.contains('/') && !name.contains(char::is_whitespace) {
            *names.entry(name).or_default() += 1;
        }
    }
    names
}

/// A name stands at both ends of a pair of atomic accesses, and correctness.md has the argument for it.
#[test]
fn sync_names_match() {
    let sources = sources(&root().join("crates/cuframes/src"));
    let names = sync_names(&sources);
    assert!(names.len() > 20, "{names:?}");
    let single: Vec<_> = names.iter().filter(|(_, count)| **count < 2).collect();
    assert!(single.is_empty(), "names at one end only: {single:?}");
    let page = |name| std::fs::read_to_string(root().join("docs").join(name)).unwrap();
    let (correctness, protocol) = (page("correctness.md"), page("protocol.md"));
    let (correctness, protocol) = (sync_names(&correctness), sync_names(&protocol));
    assert!(protocol.len() > 15, "{protocol:?}");
    let unknown = |page: &BTreeMap<&str, usize>| -> Vec<String> {
        page.keys().filter(|n| !names.contains_key(*n)).map(|n| n.to_string()).collect()
    };
    assert_eq!(unknown(&correctness), [""; 0], "correctness.md: names without a source");
    assert_eq!(unknown(&protocol), [""; 0], "protocol.md: names without a source");
    let unproven: Vec<_> = names.keys().filter(|n| !correctness.contains_key(*n)).collect();
    assert!(unproven.is_empty(), "names that correctness.md does not mention: {unproven:?}");
}

/// Returns the pages that are checked for links.
fn pages() -> Vec<PathBuf> {
    let pages = [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "crates/cuframes/README.md",
    ];
    let mut pages: Vec<_> = pages.map(|page| root().join(page)).into();
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|e| e.unwrap().path());
    pages.extend(docs.filter(|p| p.extension().is_some_and(|e| e == "md")));
    pages
}

/// The table of CONTRIBUTING leads to existing files.
#[test]
fn paths_of_contributing_exist() {
    let text = std::fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let is_path = |text: &&str| {
        text.contains('/')
            && !text.starts_with("target/")
            && text.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c))
    };
    let paths: Vec<_> = text.split('`').skip(1).step_by(2).filter(is_path).collect();
    assert!(paths.len() > 40, "{paths:?}");
    for path in paths {
        let exists = ["", "crates/cuframes/src"].map(|dir| root().join(dir).join(path).exists());
        assert!(exists.contains(&true), "there is no {path}");
    }
}

/// Returns the anchors of a page: its headings, as forges write them in addresses.
fn anchors(page: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(page).unwrap();
    let headings = text.lines().filter(|l| l.starts_with('#')).map(|l| l.trim_start_matches('#'));
    let anchor = |heading: &str| {
        let kept = heading.trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_have_targets() {
    let mut count = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).map(|l| l.split(')').next().unwrap()) {
            if link.starts_with("http") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => page.clone(),
                path => page.parent().unwrap().join(path),
            };
            assert!(target.exists(), "{}: there is no {path}", page.display());
            let found = anchor.is_empty() || anchors(&target).iter().any(|a| a == anchor);
            assert!(found, "{}: {path} has no #{anchor}", page.display());
            count += 1;
        }
    }
    assert!(count > 50, "only {count} links were found");
}
