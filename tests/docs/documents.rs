// SPDX-License-Identifier: LGPL-2.1-or-later
//! The documents agree with the sources.

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

/// Users search the page for the errors that they were shown.
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

/// Returns README, the changelog and the pages of docs/.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|e| e.unwrap().path());
    pages.extend(docs.filter(|p| p.extension().is_some_and(|e| e == "md")));
    pages
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
