//! A run as a picture (SVG): latency by percentile, and over time. In: a [`Report`]. Out: the picture's text.

use crate::report::{Report, time};
use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;

const SIZE: (u32, u32) = (900, 640);
const BLUE: RGBColor = RGBColor(33, 102, 172);
const RED: RGBColor = RGBColor(178, 24, 43);

/// Draws a report.
pub fn svg(report: &Report) -> Result<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let how = report.plan.rate.map_or_else(|| "closed loop".to_owned(), |r| format!("{r} requests/s asked for"));
        let title =
            format!("{} — {:.0} answers/s, {how}, {} failed", report.plan.url, report.rate(), report.stats.failed());
        let root = root.titled(&title, ("sans-serif", 17))?;
        let (upper, lower) = root.split_vertically(300);
        percentiles(report, &upper)?;
        over_time(report, &lower)?;
        root.present()?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Latency over 1/(1 − percentile), both logarithmic, as HDR histograms are usually drawn.
fn percentiles(report: &Report, area: &Area<'_>) -> Result<()> {
    let stats = &report.stats;
    let most = (stats.answered().max(10) as f64).min(1e6);
    let steps = 200;
    let points: Vec<(f64, f64)> = (0..=steps)
        .map(|i| {
            let x = most.powf(f64::from(i) / f64::from(steps));
            (x, stats.percentile(100.0 * (1.0 - 1.0 / x)).max(1) as f64)
        })
        .collect();
    let low = points.first().map_or(1.0, |p| p.1) * 0.8;
    let high = (stats.max() as f64 * 1.3).max(low * 10.0);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption("latency by percentile", ("sans-serif", 14))
        .x_label_area_size(34)
        .y_label_area_size(78)
        .build_cartesian_2d((1.0..most).log_scale(), (low..high).log_scale())?;
    chart
        .configure_mesh()
        .x_label_formatter(&|x| {
            format!("{:.5}", 100.0 * (1.0 - 1.0 / x)).trim_end_matches('0').trim_end_matches('.').to_owned()
        })
        .x_desc("percentile")
        .y_label_formatter(&|y| time(*y as u64))
        .light_line_style(BLACK.mix(0.06))
        .draw()?;
    chart.draw_series(LineSeries::new(points, BLUE.stroke_width(2)))?;
    Ok(())
}

fn over_time(report: &Report, area: &Area<'_>) -> Result<()> {
    let stats = &report.stats;
    let of = |percent: f64| {
        stats
            .parts
            .iter()
            .enumerate()
            .filter(|(_, p)| p.answered > 0)
            .map(move |(i, p)| ((stats.width * i as u32).as_secs_f64(), p.percentile(percent).max(1) as f64))
    };
    let low = of(50.0).map(|p| p.1).fold(f64::MAX, f64::min).min(1e6) * 0.5;
    let high = of(100.0).map(|p| p.1).fold(low * 10.0, f64::max) * 1.3;
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption("latency over time", ("sans-serif", 14))
        .x_label_area_size(34)
        .y_label_area_size(78)
        .build_cartesian_2d(0.0..report.plan.duration.as_secs_f64(), (low..high).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("seconds")
        .y_label_formatter(&|y| time(*y as u64))
        .light_line_style(BLACK.mix(0.06))
        .draw()?;
    for (name, percent, style) in [
        ("p50", 50.0, BLUE.stroke_width(2)),
        ("p99", 99.0, RED.stroke_width(2)),
        ("max", 100.0, RED.mix(0.4).stroke_width(1)),
    ] {
        let series = chart.draw_series(LineSeries::new(of(percent), style))?;
        series.label(name).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.2)).draw()?;
    Ok(())
}
