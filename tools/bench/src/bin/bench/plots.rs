// SPDX-License-Identifier: LGPL-2.1-or-later
//! Plots of the results.

use std::path::Path;

use plotters::coord::ranged1d::{IntoSegmentedCoord, SegmentValue};
use plotters::prelude::*;

use crate::Failure;
use crate::report::Report;

const SIZE: (u32, u32) = (900, 520);
const FONT: (&str, u32) = ("sans-serif", 15);

fn colour(n: usize) -> RGBColor {
    const COLOURS: [(u8, u8, u8); 8] = [
        (31, 119, 180),
        (214, 39, 40),
        (44, 160, 44),
        (148, 103, 189),
        (255, 127, 14),
        (23, 190, 207),
        (140, 86, 75),
        (90, 90, 90),
    ];
    let (r, g, b) = COLOURS[n % COLOURS.len()];
    RGBColor(r, g, b)
}

/// Named lines, in order.
type Lines = Vec<(String, Vec<(f64, f64)>)>;

pub fn draw(report: &Report, folder: &Path) -> Result<(), Failure> {
    let (first, cameras) = (report.options.subscribers[0], report.options.cameras[0]);
    let Some(&picture) = report.pictures().first() else { return Ok(()) };
    let of_picture = || report.results.iter().filter(|(case, _)| case.picture == picture);
    let with_first =
        || of_picture().filter(|(c, _)| (c.subscribers, c.cameras) == (first, cameras));
    let latencies: Lines = with_first()
        .map(|(case, result)| {
            let at = |q: u32| result.spread(|r| r.quantile(f64::from(q) / 100.0));
            let points = (0..=100).filter_map(|q| Some((at(q)?.0, f64::from(q)))).collect();
            (case.system.to_owned(), points)
        })
        .filter(|(_, points): &(_, Vec<_>)| !points.is_empty())
        .collect();
    let title = format!("Hand-over, {}, {first} subscriber(s)", picture.text());
    lines(
        &folder.join("latency.svg"),
        &title,
        ["µs (logarithmic)", "% of the frames take at most"],
        latencies,
        true,
    )?;

    // The axis depends on the option with most values.
    let by_cameras = report.options.cameras.len() > report.options.subscribers.len();
    let what = if by_cameras { "cameras" } else { "subscribers" };
    let mut costs = Lines::new();
    for (case, result) in of_picture() {
        let (x, other) = match by_cameras {
            true => (case.cameras, case.subscribers <= first),
            false => (case.subscribers, case.cameras == cameras),
        };
        let Some(cost) = result.spread(|r| r.busy(*case)).filter(|_| other) else { continue };
        match costs.iter_mut().find(|(n, _)| n == case.system) {
            Some((_, points)) => points.push((f64::from(x), cost.0)),
            None => costs.push((case.system.to_owned(), vec![(f64::from(x), cost.0)])),
        }
    }
    let title = format!("CPU of all processes, {}", picture.text());
    lines(&folder.join("cpu.svg"), &title, [what, "CPUs that are busy"], costs, false)?;

    let recoveries: Vec<(String, Vec<f64>)> = with_first()
        .map(|(case, r)| {
            (case.system.to_owned(), r.lives.iter().filter_map(|l| l.recovery).collect())
        })
        .filter(|(_, all): &(_, Vec<f64>)| !all.is_empty())
        .collect();
    points(
        &folder.join("recovery.svg"),
        "From a new publisher's first frame to a subscriber's",
        recoveries,
    )
}

fn lines(
    path: &Path,
    title: &str,
    [x, y]: [&str; 2],
    lines: Lines,
    logarithmic: bool,
) -> Result<(), Failure> {
    let all = || lines.iter().flat_map(|(_, points)| points);
    let Some(most_x) = all().map(|p| p.0).reduce(f64::max) else {
        return Ok(());
    };
    let least_x = all().map(|p| p.0).fold(f64::MAX, f64::min).max(1.0);
    let most_y = all().map(|p| p.1).fold(0.0, f64::max);
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut builder = ChartBuilder::on(&area);
    builder.caption(title, FONT).margin(12).x_label_area_size(40).y_label_area_size(64);
    // The two kinds of axes are of different types.
    macro_rules! plot {
        ($range:expr) => {{
            let mut chart = builder.build_cartesian_2d($range, 0.0..most_y * 1.02)?;
            chart.configure_mesh().x_desc(x).y_desc(y).label_style(FONT).draw()?;
            for (n, (name, points)) in lines.iter().enumerate() {
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

/// Each repetition is a point.
fn points(path: &Path, title: &str, groups: Vec<(String, Vec<f64>)>) -> Result<(), Failure> {
    let Some(most) = groups.iter().flat_map(|g| &g.1).copied().reduce(f64::max) else {
        return Ok(());
    };
    let names: Vec<&str> = groups.iter().map(|g| g.0.as_str()).collect();
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut builder = ChartBuilder::on(&area);
    builder.caption(title, FONT).margin(12).x_label_area_size(40).y_label_area_size(170);
    let mut chart =
        builder.build_cartesian_2d(0.0..most * 1.05, names.as_slice().into_segmented())?;
    chart.configure_mesh().x_desc("ms").label_style(FONT).draw()?;
    for (n, (_, values)) in groups.iter().enumerate() {
        let circles = values
            .iter()
            .map(|ms| Circle::new((*ms, SegmentValue::CenterOf(&names[n])), 5, colour(n).filled()));
        chart.draw_series(circles)?;
    }
    Ok(area.present()?)
}
