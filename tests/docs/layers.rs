// SPDX-License-Identifier: LGPL-2.1-or-later
//! Imports point downwards: no module imports one of a higher layer, and no two modules import each other.
//!
//! The test reads paths that begin with `crate` or `super`, and those of a module's own children. That is
//! enough for these sources, which use no other kind across files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use testing::root;

/// Layers of the library, from bottom to top. Modules of one layer do not import each other.
const LIBRARY: &[&[&str]] = &[
    &["types"],
    &["sync"],
    &["shm", "cuda"],
    &["error"],
    &["memory"],
    &["protocol"],
    &["publisher", "subscriber", "observe"],
    &["lib"],
];

/// Layers of the plugin.
const PLUGIN: &[&[&str]] = &[
    &["log"],
    &["time", "uri"],
    &["gstcuda"],
    &["caps"],
    &["properties"],
    &["meta"],
    &["messages"],
    &["source"],
    &["sink", "framesrc", "packetsrc", "device", "testing"],
    &["lib"],
];

#[test]
fn library_imports_point_downwards() {
    let graph = Graph::read(&root().join("crates/cuframes/src"));
    assert_eq!(graph.upward(LIBRARY), [""; 0]);
    assert_eq!(graph.cycles(), [""; 0]);
}

#[test]
fn plugin_imports_point_downwards() {
    let graph = Graph::read(&root().join("src"));
    assert_eq!(graph.upward(PLUGIN), [""; 0]);
    assert_eq!(graph.cycles(), [""; 0]);
}

/// A module by its path without `crate`; the root is `lib`.
type Module = String;

/// The imports between the modules of a crate.
#[derive(Default)]
struct Graph {
    imports: BTreeMap<Module, BTreeSet<Module>>,
}

impl Graph {
    fn read(src: &Path) -> Self {
        let mut sources = BTreeMap::new();
        read_sources(src, "", &mut sources);
        assert!(sources.len() > 5, "{} has no sources", src.display());
        Self::of(&sources)
    }

    fn of(sources: &BTreeMap<Module, String>) -> Self {
        let mut graph = Self::default();
        for (module, source) in sources {
            let imports = paths(&code(source)).into_iter().filter_map(|path| {
                target(module, &path, sources).filter(|target| target != module)
            });
            graph.imports.insert(module.clone(), imports.collect());
        }
        graph
    }

    /// Returns imports of a higher layer, and of another module of the same layer.
    fn upward(&self, layers: &[&[&str]]) -> Vec<String> {
        let layer = |module: &str| {
            let name = module.split("::").next().unwrap();
            let found = layers.iter().position(|layer| layer.contains(&name));
            (
                name.to_owned(),
                found.unwrap_or_else(|| panic!("'{name}' is in no layer of this test")),
            )
        };
        let mut wrong = Vec::new();
        for (from, to) in self.edges() {
            let ((from_name, from_layer), (to_name, to_layer)) = (layer(from), layer(to));
            if from_name != to_name && to_layer >= from_layer {
                wrong.push(format!("{from} imports {to}, which is not below it"));
            }
        }
        wrong
    }

    /// Returns imports that lead back to the importing module.
    ///
    /// The `mod.rs` of a folder is its facade, so that its imports of its own children do not count.
    fn cycles(&self) -> Vec<String> {
        let is_facade = |from: &str, to: &str| to.starts_with(&format!("{from}::"));
        let edges: BTreeSet<_> = self.edges().filter(|(from, to)| !is_facade(from, to)).collect();
        let leads_back = |(from, to): &&(&str, &str)| reaches(&edges, to, from);
        let sentence =
            |(from, to): &(&str, &str)| format!("{from} imports {to}, which imports {from}");
        edges.iter().filter(leads_back).map(sentence).collect()
    }

    fn edges(&self) -> impl Iterator<Item = (&str, &str)> {
        let of = |(from, all)| std::iter::repeat(from).zip(all);
        self.imports.iter().flat_map(of).map(|(from, to): (&Module, &Module)| (&**from, &**to))
    }
}

/// Returns whether imports lead from one module to another, over any number of others.
fn reaches(edges: &BTreeSet<(&str, &str)>, from: &str, to: &str) -> bool {
    let (mut found, mut open) = (BTreeSet::from([from]), vec![from]);
    while let Some(module) = open.pop() {
        for (_, next) in edges.iter().filter(|(from, _)| *from == module) {
            if found.insert(next) {
                open.push(next);
            }
        }
    }
    // The start itself is found without an import.
    if from == to { edges.contains(&(from, to)) } else { found.contains(to) }
}

fn read_sources(dir: &Path, module: &str, into: &mut BTreeMap<Module, String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let below = if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") };
        if path.is_dir() {
            read_sources(&path, &below, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let module = if name == "mod" { module.to_owned() } else { below };
            into.insert(module, std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// Returns the code of a source without comments, literals and unit tests.
fn code(source: &str) -> String {
    let source = source.split("#[cfg(test)]\nmod ").next().unwrap();
    let (mut code, mut rest) = (String::new(), source);
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match c {
            '/' if after.starts_with('/') => after.split_once('\n').map_or("", |(_, rest)| rest),
            '"' => after_literal(after),
            // A character, and not a lifetime.
            '\'' if after.starts_with('\\') => after[2..].split_once('\'').map_or("", |(_, r)| r),
            '\'' if after.chars().nth(1) == Some('\'') => after.split_once('\'').unwrap().1,
            _ => {
                code.push(c);
                after
            }
        };
    }
    code
}

fn after_literal(text: &str) -> &str {
    let mut escaped = false;
    let end = text.find(|c| {
        let end = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        end
    });
    end.map_or("", |end| &text[end + 1..])
}

/// Returns paths of several parts. A group such as `a::{b, c::d}` yields `a::b` and `a::c::d`.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let mut tokens = tokens(code).into_iter().peekable();
    // The path in front of each open bracket.
    let (mut prefixes, mut path) = (vec![Vec::new()], Vec::<String>::new());
    while let Some(token) = tokens.next() {
        let continues = tokens.peek().is_some_and(|next| next == "::");
        match token.as_str() {
            "::" => match tokens.peek().map(String::as_str) {
                Some("{") => {
                    tokens.next();
                    prefixes.push(std::mem::take(&mut path));
                }
                Some(_) => {}
                None => break,
            },
            "{" => prefixes.push(prefixes.last().cloned().unwrap_or_default()),
            "}" => {
                paths.push(std::mem::take(&mut path));
                prefixes.pop();
            }
            word if word.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                if path.is_empty() {
                    path.clone_from(prefixes.last().unwrap_or(&Vec::new()));
                }
                path.push(word.to_owned());
                if !continues {
                    paths.push(std::mem::take(&mut path));
                }
            }
            _ => path.clear(),
        }
    }
    paths.retain(|path| path.len() > 1);
    paths
}

fn tokens(code: &str) -> Vec<String> {
    let (mut tokens, mut rest) = (Vec::new(), code);
    while let Some(c) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let len = match c {
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            ':' if rest.starts_with("::") => 2,
            c => c.len_utf8(),
        };
        if !c.is_whitespace() {
            tokens.push(rest[..len].to_owned());
        }
        rest = &rest[len..];
    }
    tokens
}

/// Returns the module that a path leads to; `None` for other crates.
fn target(module: &str, path: &[String], sources: &BTreeMap<Module, String>) -> Option<Module> {
    let own: Vec<String> = match module {
        "lib" => Vec::new(),
        module => module.split("::").map(str::to_owned).collect(),
    };
    let supers = path.iter().take_while(|part| *part == "super").count();
    let absolute = match path[0].as_str() {
        "crate" => path[1..].to_vec(),
        "super" => [&own[..own.len().checked_sub(supers)?], &path[supers..]].concat(),
        "self" => [&own[..], &path[1..]].concat(),
        // A child, or an item of another crate.
        _ => [&own[..], path].concat(),
    };
    let mut files = (1..=absolute.len()).rev().map(|len| absolute[..len].join("::"));
    let found = files.find(|file| sources.contains_key(file));
    let is_own = ["crate", "super"].contains(&path[0].as_str());
    // An item of the root has no file of its own.
    found.or_else(|| is_own.then(|| "lib".to_owned()))
}

/// The test finds a cycle and upward imports in made-up sources.
#[test]
fn violations_are_found() {
    let source = |(module, text): (&str, &str)| (module.to_owned(), text.to_owned());
    let graph = Graph::of(&BTreeMap::from(
        [
            ("lib", "pub mod low; pub mod high; pub use high::Thing;"),
            ("low", "// crate::high is above\nuse crate::{high::{Thing, other}, low};\nconst A: &str = \"crate::lib\";"),
            ("high::mod_is_a_file", "use super::second::B;"),
            ("high", "mod mod_is_a_file; use mod_is_a_file::A; fn f() { crate::low::g() }"),
            ("high::second", "use super::mod_is_a_file::A; use std::sync::Arc; use crate::Thing;"),
        ]
        .map(source),
    ));
    let layers: &[&[&str]] = &[&["low"], &["high"], &["lib"]];
    assert_eq!(
        graph.upward(layers),
        [
            "high::second imports lib, which is not below it",
            "low imports high, which is not below it",
        ]
    );
    assert_eq!(
        graph.cycles(),
        [
            "high imports low, which imports high",
            "high::mod_is_a_file imports high::second, which imports high::mod_is_a_file",
            "high::second imports high::mod_is_a_file, which imports high::second",
            "low imports high, which imports low",
        ]
    );
    let beside: &[&[&str]] = &[&["low", "high"], &["lib"]];
    assert_eq!(graph.upward(beside).len(), 3);
}
