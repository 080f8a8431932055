// SPDX-License-Identifier: LGPL-2.1-or-later
//! Draws the results of the benchmark: `plot RESULTS.json` writes latency.svg, cpu.svg and recovery.svg beside it.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use plotters::coord::ranged1d::{IntoSegmentedCoord, SegmentValue};
use plotters::prelude::*;
use serde_json::Value;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const SIZE: (u32, u32) = (900, 520);
const FONT: (&str, u32) = ("sans-serif", 15);
const COLOURS: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(23, 190, 207),
    RGBColor(140, 86, 75),
    RGBColor(90, 90, 90),
];

fn colour(n: usize) -> RGBColor {
    COLOURS[n % COLOURS.len()]
}

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: plot RESULTS.json");
        return ExitCode::from(2);
    };
    let path = Path::new(&path);
    match draw(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("plot: {}: {e}", path.display());
            ExitCode::FAILURE
        }
    }
}

/// Named series of points, in the order of the results.
type Series = Vec<(String, Vec<(f64, f64)>)>;

/// The results of the first size and rate, which are those that are drawn.
struct Results<'a>(Vec<&'a Value>);

impl<'a> Results<'a> {
    fn of(all: &'a Value) -> Outcome<Self> {
        let results = all["results"].as_array().ok_or("there are no results in it")?;
        let first = results.first().ok_or("it has no result")?;
        let picture = (&first["size"], &first["fps"]);
        Ok(Self(results.iter().filter(|r| (&r["size"], &r["fps"]) == picture).collect()))
    }

    fn picture(&self) -> String {
        let size = self.0[0]["size"].as_str().unwrap_or_default();
        match self.0[0]["fps"].as_u64() {
            Some(fps) if fps > 0 => format!("{size}, {fps} fps"),
            _ => format!("{size}, at full speed"),
        }
    }

    /// The least number of cameras or subscribers of a system that has any.
    fn least(&self, field: &str) -> u64 {
        self.0.iter().filter_map(|r| r[field].as_u64()).filter(|n| *n > 0).min().unwrap_or(0)
    }

    fn distinct(&self, field: &str) -> usize {
        let mut all: Vec<_> = self.0.iter().filter_map(|r| r[field].as_u64()).collect();
        all.sort_unstable();
        all.dedup();
        all.len()
    }
}

fn system(result: &Value) -> String {
    result["system"].as_str().unwrap_or_default().to_owned()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

fn draw(path: &Path) -> Outcome {
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let results = Results::of(&all)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let (subscribers, cameras) = (results.least("subscribers"), results.least("cameras"));
    let simplest: Vec<&Value> = results
        .0
        .iter()
        .copied()
        .filter(|r| r["subscribers"] == subscribers && r["cameras"] == cameras)
        .collect();

    let latencies = simplest.iter().map(|result| {
        let percentiles = numbers(&result["latency_us"]["percentiles"]);
        (
            system(result),
            percentiles.into_iter().zip(0u32..).map(|(t, q)| (t, f64::from(q))).collect(),
        )
    });
    let title = format!("Hand-over, {}, {subscribers} subscriber(s)", results.picture());
    let labels = ["µs (logarithmic)", "% of the frames take at most"];
    lines(&folder.join("latency.svg"), &title, labels, &drawable(latencies.collect()), true)?;

    let (costs, x) = costs(&results, subscribers, cameras);
    let title = format!("CPU of all processes, {}", results.picture());
    lines(&folder.join("cpu.svg"), &title, [x, "CPUs that are busy"], &drawable(costs), false)?;

    let recoveries = simplest.iter().map(|result| {
        let spread = ["least", "median", "most"].map(|field| result["recovery_ms"][field].as_f64());
        (system(result), spread.into_iter().flatten().map(|ms| (ms, 0.0)).collect())
    });
    let title = "From a new publisher's first frame to a subscriber's";
    points(&folder.join("recovery.svg"), title, &drawable(recoveries.collect()))
}

/// Drops series without points.
fn drawable(mut series: Series) -> Series {
    series.retain(|(_, points)| !points.is_empty());
    series
}

/// Busy CPUs by the number of subscribers or of cameras, whichever has more values; and the name of that axis.
fn costs(results: &Results<'_>, subscribers: u64, cameras: u64) -> (Series, &'static str) {
    let by_cameras = results.distinct("cameras") > results.distinct("subscribers");
    let (axis, other, least) = match by_cameras {
        true => ("cameras", "subscribers", subscribers),
        false => ("subscribers", "cameras", cameras),
    };
    let mut costs = Series::new();
    for result in results.0.iter().filter(|r| r[other].as_u64().is_some_and(|n| n <= least)) {
        let (Some(x), Some(y)) = (result[axis].as_f64(), result["busy_cpus"]["median"].as_f64())
        else {
            continue;
        };
        let name = system(result);
        match costs.iter_mut().find(|(known, _)| *known == name) {
            Some((_, points)) => points.push((x, y)),
            None => costs.push((name, vec![(x, y)])),
        }
    }
    (costs, axis)
}

fn lines(
    path: &Path,
    title: &str,
    [x, y]: [&str; 2],
    series: &Series,
    logarithmic: bool,
) -> Outcome {
    let all = || series.iter().flat_map(|(_, points)| points);
    let Some(most_x) = all().map(|p| p.0).reduce(f64::max) else { return Ok(()) };
    let least_x = all().map(|p| p.0).fold(f64::MAX, f64::min).max(1.0);
    let most_y = all().map(|p| p.1).fold(0.0, f64::max);
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut builder = ChartBuilder::on(&area);
    builder.caption(title, FONT).margin(12).x_label_area_size(40).y_label_area_size(64);
    // The two kinds of axes have different types.
    macro_rules! plot {
        ($range:expr) => {{
            let mut chart = builder.build_cartesian_2d($range, 0.0..most_y * 1.02)?;
            chart.configure_mesh().x_desc(x).y_desc(y).label_style(FONT).draw()?;
            for (n, (name, points)) in series.iter().enumerate() {
                let line = LineSeries::new(points.iter().copied(), colour(n).stroke_width(2));
                chart.draw_series(line)?.label(name.as_str()).legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour(n).stroke_width(2))
                });
            }
            let mut labels = chart.configure_series_labels();
            labels.position(SeriesLabelPosition::LowerRight).background_style(WHITE.mix(0.8));
            labels.border_style(BLACK).label_font(FONT).draw()?;
        }};
    }
    match logarithmic {
        true => plot!((least_x..most_x).log_scale()),
        false => plot!(0.0..most_x * 1.02),
    }
    Ok(area.present()?)
}

/// Draws a row of points for each series.
fn points(path: &Path, title: &str, series: &Series) -> Outcome {
    let Some(most) = series.iter().flat_map(|(_, points)| points).map(|p| p.0).reduce(f64::max)
    else {
        return Ok(());
    };
    let names: Vec<&str> = series.iter().map(|(name, _)| name.as_str()).collect();
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut builder = ChartBuilder::on(&area);
    builder.caption(title, FONT).margin(12).x_label_area_size(40).y_label_area_size(170);
    let mut chart =
        builder.build_cartesian_2d(0.0..most * 1.05, names.as_slice().into_segmented())?;
    let label = |value: &SegmentValue<&&str>| match value {
        SegmentValue::CenterOf(name) | SegmentValue::Exact(name) => (**name).to_owned(),
        SegmentValue::Last => String::new(),
    };
    chart.configure_mesh().x_desc("ms").y_label_formatter(&label).label_style(FONT).draw()?;
    for (n, (_, points)) in series.iter().enumerate() {
        let circles = points.iter().map(|(ms, _)| {
            Circle::new((*ms, SegmentValue::CenterOf(&names[n])), 5, colour(n).filled())
        });
        chart.draw_series(circles)?;
    }
    Ok(area.present()?)
}
