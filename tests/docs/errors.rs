// SPDX-License-Identifier: LGPL-2.1-or-later
//! tests/errors.txt lists every error text of the sources, so that a new or changed one shows in review.
//! `make docs` writes it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use testing::root;

const HEAD: &str = "Written by `make docs` from the texts in src and crates that say what is wrong. Do not edit.\n";

/// Calls whose texts are no errors: documentation, logs for developers, and bugs.
const OTHERS: [&str; 18] = [
    "nick",
    "blurb",
    "enum_value",
    "allow",
    "ElementMetadata::new",
    "DeviceProviderMetadata::new",
    "expect",
    "assert!",
    "assert_eq!",
    "debug_assert!",
    "panic!",
    "unreachable!",
    "debug_struct",
    "debug!",
    "info!",
    "log!",
    "trace!",
    "print!",
];

/// Sentences without advice.
const WITHOUT_ADVICE: [&str; 15] = [
    // Subjects of sentences whose second part has the advice, and a sentence that another literal continues.
    "A subscriber",
    "The caps",
    "The frame pool",
    "The packet buffer's number of bytes",
    "The socket's group",
    "GPU with cuda-device-id {ordinal}",
    "No publisher of '{key}' in",
    // The inserted text contains the advice.
    "The publisher of '{key}' refused: {text}",
    "There is no {wanted}, nor any other GPU: {}",
    "The frames of pad sink of '{key}' can't be published. {e}",
    "The packets of pad packets_{track} of '{key}' are left out until their caps change. {problem}",
    // The caller caused it.
    "The wait was interrupted",
    // Errors of the sources themselves, which a user cannot fix.
    "The memory is registered in another context than the stream's",
    "There is no word to write at byte {offset} of {self:?}",
    // The description of the log category, no error.
    "Sharing of frames and packets between processes",
];

/// Returns the texts of a file: literals of several words, without comments and arguments of `OTHERS`.
///
/// It parses as much of Rust as these sources use. A text that it misses would be absent from the list.
fn texts(source: &str) -> Vec<String> {
    let mut texts = Vec::new();
    let mut calls: Vec<String> = Vec::new(); // what each open bracket belongs to
    let mut word = String::new(); // the word before the next bracket
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
            continue;
        }
        if rest.starts_with("#[cfg(test)]\nmod ") {
            break;
        }
        match c {
            '"' => {
                let end = closing(after);
                let text = unescaped(&after[..end]);
                let other = |call: &String| {
                    OTHERS.iter().any(|o| call == o || call.ends_with(&format!("::{o}")))
                };
                if is_text(&text) && !calls.iter().any(other) {
                    texts.push(text);
                }
                rest = &after[end + 1..];
                word.clear();
                continue;
            }
            // A character, not a lifetime.
            '\'' if after.starts_with('\\') => {
                rest = after[2..].split_once('\'').map_or("", |(_, rest)| rest);
                continue;
            }
            '\'' if after.chars().nth(1) == Some('\'') => {
                rest = &after[after.find('\'').map_or(0, |at| at + 1)..];
                continue;
            }
            '(' | '[' | '{' => calls.push(std::mem::take(&mut word)),
            ')' | ']' | '}' => drop(calls.pop()),
            c if c.is_alphanumeric() || "_!:".contains(c) => word.push(c),
            c if c.is_whitespace() => {}
            _ => word.clear(),
        }
        if c.is_whitespace() && !after.trim_start().starts_with(['(', '{', '[']) {
            word.clear();
        }
        rest = after;
    }
    texts
}

/// Returns whether a literal has at least two words apart from its arguments. Only help texts have several
/// lines, only descriptions of metrics end in a full stop, and texts of Debug look like calls.
fn is_text(literal: &str) -> bool {
    let put_in: String = literal
        .split('{')
        .map(|part| part.split_once('}').map_or(part, |(_, rest)| rest))
        .collect();
    let words = put_in.split(' ').filter(|w| w.chars().filter(|c| c.is_lowercase()).count() > 1);
    words.count() > 1
        && !literal.contains('\n')
        && !literal.ends_with('.')
        && !literal.contains("({:")
}

/// Returns the index of the closing quote.
fn closing(text: &str) -> usize {
    let mut escaped = false;
    let end = text.bytes().position(|b| {
        let end = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        end
    });
    end.expect("literals end")
}

fn unescaped(literal: &str) -> String {
    literal.replace("\\\"", "\"").replace("\\n", "\n")
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    entries.into_iter().flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] }).collect()
}

#[test]
fn error_list_is_up_to_date() {
    let (mut list, mut silent) = (HEAD.to_owned(), Vec::new());
    let mut dirs = vec![root().join("src")];
    dirs.extend(
        ["cuframes", "cuframes-cli"].map(|name| root().join("crates").join(name).join("src")),
    );
    for file in dirs.iter().flat_map(|dir| files(dir)) {
        let source = std::fs::read_to_string(&file).unwrap();
        let texts: BTreeSet<_> = texts(&source).into_iter().collect();
        if !texts.is_empty() {
            writeln!(list, "\n{}", file.strip_prefix(root()).unwrap().display()).unwrap();
        }
        for text in texts {
            let advises = text.split(": ").skip(1).any(|part| part.starts_with(char::is_lowercase));
            let sentence = text.starts_with(char::is_uppercase);
            if sentence && !advises && !WITHOUT_ADVICE.contains(&&*text) {
                silent.push(text.clone());
            }
            writeln!(list, "  {text}").unwrap();
        }
    }
    assert!(silent.is_empty(), "sentences that do not say what to do, after a colon: {silent:#?}");
    let path = root().join("tests/errors.txt");
    if std::env::var_os("CUFRAMES_WRITE").is_some() {
        std::fs::write(&path, &list).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let (new, old): (BTreeSet<_>, BTreeSet<_>) =
        (list.lines().collect(), written.lines().collect());
    assert!(
        list == written,
        "tests/errors.txt is out of date: run make docs\nnew: {:#?}\ngone: {:#?}",
        new.difference(&old).collect::<Vec<_>>(),
        old.difference(&new).collect::<Vec<_>>()
    );
}
