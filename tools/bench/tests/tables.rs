// SPDX-License-Identifier: LGPL-2.1-or-later
//! The tables of docs/benchmarks.md agree with the results beside it. `make docs` writes them from the
//! comment above each table:
//!
//! `<!-- table FILE[,FILE] | KEY=VALUE,… … | COLUMN … [| across KEY] -->` has a row for each result with
//! these values, in their order. With `across`, values of that key are columns side by side. A key with one
//! value is not shown. `<!-- model FILE | system=… | MODEL … -->` contains fitted models, `<!-- calls FILE |
//! system=… subscribers=… -->` the system calls per frame, `<!-- packets FILE -->` the results of
//! bench-packets.

use std::path::PathBuf;

use serde_json::Value;

const END: &str = "<!-- end -->";

#[test]
fn tables_are_up_to_date() {
    let page = docs().join("benchmarks.md");
    let before = std::fs::read_to_string(&page).unwrap();
    let after = filled(&before);
    if std::env::var_os("CUFRAMES_WRITE").is_some() {
        std::fs::write(&page, after).unwrap();
    } else {
        let differs = before.lines().zip(after.lines()).find(|(b, a)| b != a);
        assert!(before == after, "docs/benchmarks.md is out of date, run make docs: {differs:?}");
    }
}

/// The test of all links knows that each target exists. This is the other way round.
#[test]
fn all_results_are_linked_to() {
    let page = std::fs::read_to_string(docs().join("benchmarks.md")).unwrap();
    for entry in std::fs::read_dir(docs().join("benchmarks")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(page.contains(&format!("](benchmarks/{name})")), "nothing refers to {name}");
    }
}

fn docs() -> PathBuf {
    testing::root().join("docs")
}

fn filled(page: &str) -> String {
    let mut out = String::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        out += &format!("{line}\n");
        let asked = line.strip_prefix("<!-- ").and_then(|l| l.strip_suffix(" -->"));
        let Some((kind, rest)) = asked.and_then(|a| a.split_once(' ')) else { continue };
        let parts: Vec<&str> = rest.split('|').map(str::trim).collect();
        let table = match kind {
            "table" => table(&parts),
            "model" => model(&parts),
            "packets" => packets(parts[0]),
            "calls" => calls(&parts),
            _ => continue,
        };
        out += &(table + END + "\n");
        // Skips the old table, which a new comment does not have.
        assert!(lines.any(|l| l == END), "nothing ends the table of '{rest}'");
    }
    out
}

fn read(file: &str) -> Value {
    let text = std::fs::read_to_string(docs().join("benchmarks").join(file)).expect(file);
    serde_json::from_str(&text).expect(file)
}

/// Parses keys and their values.
fn keys(text: &str) -> Vec<(&str, Vec<&str>)> {
    let pairs = text.split_whitespace().map(|word| word.split_once('=').expect(word));
    pairs.map(|(key, values)| (key, values.split(',').collect())).collect()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Formats a table in Markdown, without alignment.
fn markdown(heads: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|{}\n", "---|".repeat(heads.len()));
    line(heads) + &rule + &rows.iter().map(|r| line(r)).collect::<String>()
}

/// What a comment asks of a table.
struct Table<'a> {
    results: Vec<Value>,
    /// Keys that select rows, with their values.
    down: Vec<(&'a str, Vec<&'a str>)>,
    /// The key whose values are columns side by side.
    across: Option<(&'a str, Vec<&'a str>)>,
    columns: Vec<&'a str>,
}

fn table(parts: &[&str]) -> String {
    let table = Table::parse(parts);
    let rows: Vec<_> = table.rows().iter().filter_map(|row| table.line(row)).collect();
    assert!(!rows.is_empty(), "no result of {parts:?}");
    markdown(&table.heads(), &rows)
}

impl<'a> Table<'a> {
    fn parse(parts: &[&'a str]) -> Self {
        let [files, keys_of_it, columns, rest @ ..] = parts else { panic!("{parts:?}") };
        let results: Vec<Value> = files.split(',').flat_map(results).collect();
        let mut down = keys(keys_of_it);
        for (key, values) in &down {
            for value in values {
                assert!(results.iter().any(|r| text(&r[key]) == *value), "{key} is never {value}");
            }
        }
        let across = rest.first().and_then(|r| r.strip_prefix("across ")).map(|across| {
            let at = down.iter().position(|(key, _)| *key == across).expect(across);
            down.remove(at)
        });
        Self { results, down, across, columns: columns.split_whitespace().collect() }
    }

    /// Returns the rows by their values of all keys that go down.
    fn rows(&self) -> Vec<Vec<&'a str>> {
        let mut rows = vec![Vec::new()];
        for (_, values) in &self.down {
            let longer = |row: &Vec<_>| {
                values.iter().map(|v| [row.clone(), vec![*v]].concat()).collect::<Vec<_>>()
            };
            rows = rows.iter().flat_map(longer).collect();
        }
        rows
    }

    /// Returns the indexes of the keys that are shown. A key with one value is not.
    fn labels(&self) -> impl Iterator<Item = usize> {
        (0..self.down.len()).filter(|n| self.down[*n].1.len() > 1)
    }

    /// Returns the values whose columns are side by side; `None` stands for one group.
    fn groups(&self) -> Vec<Option<&'a str>> {
        match &self.across {
            Some((_, values)) => values.iter().copied().map(Some).collect(),
            None => vec![None],
        }
    }

    fn heads(&self) -> Vec<String> {
        let mut heads: Vec<_> =
            self.labels().map(|n| key_head(self.down[n].0).to_owned()).collect();
        let across = across_head(self.across.as_ref().map(|(key, _)| *key));
        for group in self.groups() {
            heads.extend(self.columns.iter().enumerate().map(|(n, column)| match group {
                Some(value) if n == 0 => format!("{across} {value}: {}", column_head(column)),
                _ => column_head(column).to_owned(),
            }));
        }
        heads
    }

    /// Returns the cells of a row; `None` without a result.
    fn line(&self, row: &[&str]) -> Option<Vec<String>> {
        let label = |n: usize| match self.down[n].0 {
            "system" => format!("`{}`", row[n]),
            _ => row[n].to_owned(),
        };
        let results: Vec<_> = self.groups().into_iter().map(|g| self.result(row, g)).collect();
        results.iter().any(Option::is_some).then(|| {
            let mut line: Vec<_> = self.labels().map(label).collect();
            for result in results {
                let cell = |column: &&str| result.map_or(String::new(), |r| cell(r, column));
                line.extend(self.columns.iter().map(cell));
            }
            line
        })
    }

    fn result(&self, row: &[&str], group: Option<&str>) -> Option<&Value> {
        only(&self.results, |r| {
            let is = |key: &str, value: &str| text(&r[key]) == value;
            let across = self.across.as_ref().map(|(key, _)| *key).zip(group);
            self.down.iter().zip(row).all(|((key, _), value)| is(key, value))
                && across.is_none_or(|(key, value)| is(key, value))
        })
    }
}

/// Returns the results of a file. Each also has the cores of its machine.
fn results(file: &str) -> Vec<Value> {
    let mut all = read(file);
    let cores = all["machine"]["cores"].clone();
    let mut results = all["results"].as_array_mut().expect(file).split_off(0);
    for result in &mut results {
        result["cores"] = cores.clone();
    }
    results
}

/// Returns the result that matches. A table has to select one of several.
fn only(results: &[Value], is: impl Fn(&Value) -> bool) -> Option<&Value> {
    let mut all = results.iter().filter(|r| is(r));
    let found = all.next();
    assert!(all.next().is_none(), "more than one result: {found:?} …");
    found
}

fn key_head(key: &str) -> &str {
    match key {
        "fps" => "frames a second",
        "subscribers" => "subscribers of each",
        other => other,
    }
}

fn across_head(key: Option<&str>) -> &str {
    match key {
        Some("subscribers") => "S =",
        other => other.unwrap_or_default(),
    }
}

fn column_head(column: &str) -> &str {
    match column {
        "p50" => "p50 µs",
        "publisher" => "publisher µs/frame",
        "subscriber" => "subscriber µs/frame",
        "switches" => "switches of a subscriber",
        "busy" => "busy CPUs",
        "memory" => "memory of all MiB",
        "vram" => "GPU MiB",
        "decoder" => "decoders %",
        "published" => "published a second",
        "received" => "received by each",
        "first" => "first frame ms",
        "recovery" => "recovery ms",
        "restarts" => "sources started again",
        "idle-publisher" => "idle publisher µs a second",
        "idle-subscriber" => "idle subscriber",
        "enqueue" => "sink's pad to `render`",
        "publish" => "to publication",
        "ring" => "to the end of the wake-up call",
        "wake" => "until the subscriber runs",
        "ready" => "pixels complete",
        "wrap" => "buffer",
        "push" => "to the next element",
        other => other,
    }
}

/// Formats a figure of a result: the median of its turns, for some figures with minimum and maximum.
fn cell(result: &Value, column: &str) -> String {
    let r = result;
    match column {
        "p50" | "max" => spread(&r["latency_us"][column], 0),
        "p95" | "p99" => median(&r["latency_us"][column], 0),
        "publisher" | "subscriber" => spread(&r[format!("{column}_cpu_us_per_frame")], 0),
        "switches" => median(&r["subscriber_switches_per_frame"], 1),
        "busy" => median(&r["busy_cpus"], 2),
        "memory" => median(&r["memory_mib"], 0),
        "vram" => median(&r["vram_mib"], 0),
        "decoder" => median(&r["gpu_decoder_percent"], 0),
        "published" | "received" => {
            let rate = &r[format!("{column}_per_s")];
            median(rate, if rate["median"].as_f64() < Some(1000.0) { 1 } else { 0 })
        }
        "cores" | "lost" => text(&r[column]),
        "first" => spread(&r["first_frame_ms"], 1),
        "recovery" => spread(&r["recovery_ms"], 1),
        "restarts" => match r["restarts"].as_array() {
            Some(all) if all.iter().any(|n| n.as_u64() > Some(0)) => "yes".into(),
            Some(_) => "no".into(),
            None => String::new(),
        },
        "idle-publisher" | "idle-subscriber" => {
            let cpu = &r["idle_per_s"][format!("{}_cpu_us", &column[5..])];
            cpu.as_f64().map_or(String::new(), |us| number(us, 0))
        }
        step => r["steps_us"][step]["p50"]
            .as_f64()
            .map_or(String::new(), |us| number(us, if us < 0.95 { 1 } else { 0 })),
    }
}

fn median(figure: &Value, decimals: usize) -> String {
    figure["median"].as_f64().map_or(String::new(), |m| number(m, decimals))
}

fn spread(figure: &Value, decimals: usize) -> String {
    let of = |name: &str| figure[name].as_f64().map(|v| number(v, decimals));
    match (of("least"), of("median"), of("most")) {
        (Some(least), Some(median), Some(most)) if least != most => {
            format!("{median} ({least}–{most})")
        }
        (_, median, _) => median.unwrap_or_default(),
    }
}

/// Formats a number with commas between thousands.
fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut out = String::new();
    for (n, digit) in whole.chars().enumerate() {
        if n > 0 && (whole.len() - n) % 3 == 0 && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    (out + rest).replace('-', "−")
}

/// Formats `a + b · S (r², largest error)` for each system and model.
fn model(parts: &[&str]) -> String {
    let [file, keys_of_it, models] = parts else { panic!("{parts:?}") };
    let models: Vec<&str> = models.split_whitespace().collect();
    let all = read(file)["model"].take();
    let fitted = |system: &str, model: &str| {
        let is = |m: &Value| m["system"] == system && m["of"] == model;
        let found = only(all.as_array().unwrap(), is)?;
        let names = [
            ("cameras", "C"),
            ("subscribers", "S"),
            ("cameras · subscribers", "C·S"),
            ("further cameras", "(C−1)"),
        ];
        let decimals = |v: f64| match v.abs() {
            10.0.. => 0,
            1.0.. => 1,
            0.1.. => 2,
            _ => 4,
        };
        let part = |v: f64| number(v.abs(), decimals(v));
        let a = found["sum"]["a"].as_f64()?;
        let mut sum = number(a, decimals(a));
        for (name, symbol) in names {
            if let Some(v) = found["sum"][name].as_f64() {
                sum += &format!(" {} {} · {symbol}", if v < 0.0 { "−" } else { "+" }, part(v));
            }
        }
        let (r2, worst) = (found["r2"].as_f64()?, found["worst"].as_f64()? * 100.0);
        Some(format!("{sum} ({}, {} %)", number(r2, 2), number(worst, 0)))
    };
    let head = |model: &&str| match *model {
        "publisher" => "publisher, µs a frame".to_owned(),
        "all" => "all processes, CPUs".into(),
        "memory" => "memory of all, MiB".into(),
        other => format!("{other}, MiB"),
    };
    let heads: Vec<String> =
        ["system".to_owned()].into_iter().chain(models.iter().map(head)).collect();
    let systems = keys(keys_of_it).remove(0).1;
    let row = |system: &&str| {
        let cells = models.iter().map(|m| fitted(system, m).unwrap_or_default());
        [format!("`{system}`")].into_iter().chain(cells).collect()
    };
    markdown(&heads, &systems.iter().map(row).collect::<Vec<_>>())
}

/// Formats calls by name, without those of a publisher that hands over nothing, and without rare ones.
fn calls(parts: &[&str]) -> String {
    let [file, keys_of_it] = parts else { panic!("{parts:?}") };
    let keys = keys(keys_of_it);
    let (systems, counts) = (&keys[0].1, &keys[1].1);
    let results = read(file)["results"].take();
    let of = |system: &str, count: &str, whose: &str| {
        let is = |r: &Value| r["system"] == system && text(&r["subscribers"]) == count;
        only(results.as_array().unwrap(), is).expect(system)[whose].clone()
    };
    let alone = of("alone", "0", "publisher_calls_per_frame");
    let list = |calls: Value, others: &Value| {
        let own = calls.as_object().unwrap().iter().filter_map(|(name, count)| {
            let count = count.as_f64()? - others[name].as_f64().unwrap_or(0.0);
            (count >= 0.05).then_some((name, count))
        });
        let mut own: Vec<_> = own.collect();
        own.sort_by(|a, b| b.1.total_cmp(&a.1));
        let sum = number(own.iter().map(|(_, count)| count).sum(), 1);
        let named = own.iter().map(|(name, count)| {
            let count = number(*count, usize::from(*count < 9.95));
            format!("{count} `{}`", name.replace(" (private)", ""))
        });
        let named = named.collect::<Vec<_>>().join(", ");
        if own.len() > 1 { format!("{sum}: {named}") } else { named }
    };
    let heads = counts.iter().map(|count| format!("publisher, {count}"));
    let heads: Vec<_> =
        ["system".to_owned()].into_iter().chain(heads).chain(["subscriber".into()]).collect();
    let row = |system: &&str| {
        let publisher = |count: &&str| list(of(system, count, "publisher_calls_per_frame"), &alone);
        let subscriber = list(of(system, counts[0], "subscriber_calls_per_frame"), &Value::Null);
        let publishers = counts.iter().map(publisher);
        [format!("`{system}`")].into_iter().chain(publishers).chain([subscriber]).collect()
    };
    markdown(&heads, &systems.iter().map(row).collect::<Vec<_>>())
}

/// Formats results of bench-packets. Of the readers, it shows the median one.
fn packets(file: &str) -> String {
    let all = read(file);
    let rows = all["results"].as_array().unwrap().iter().map(|r| {
        let readers = r["readers"].as_array().unwrap();
        let of = |get: &dyn Fn(&Value) -> Option<f64>| {
            let mut all: Vec<f64> = readers.iter().filter_map(get).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        let lost: u64 = readers.iter().filter_map(|r| r["lost"].as_u64()).sum();
        let own = |q: &str| number(r["publisher"]["us"][q].as_f64().unwrap(), 0);
        let handed = |q: &str| number(of(&|r| r["us"][q].as_f64()), 0);
        let percent = r["publisher"]["cpu_percent"].as_f64().unwrap();
        vec![
            text(&r["cameras"]),
            own("p50"),
            own("p99"),
            number(percent, 1),
            handed("p50"),
            handed("p95"),
            handed("p99"),
            number(of(&|r| r["cpu_percent"].as_f64()), 1),
            lost.to_string(),
        ]
    });
    let heads = [
        "cameras",
        "published in p50 µs",
        "p99",
        "publisher % of a CPU",
        "hand-over p50 µs",
        "p95",
        "p99",
        "each reader % of a CPU",
        "lost",
    ];
    markdown(&heads.map(str::to_owned), &rows.collect::<Vec<_>>())
}
