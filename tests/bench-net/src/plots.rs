//! Plots over the number of Services, both axes logarithmic, as SVG.

use anyhow::{Result, anyhow};
use causeway_bench_net::colours::COLOURS;
use plotters::prelude::*;
use std::path::Path;

/// One line of a plot.
pub struct Line {
    /// In the legend.
    pub name: String,
    /// Number of Services and value.
    pub points: Vec<(f64, f64)>,
}

/// Draws lines into a file.
pub fn draw(file: &Path, title: &str, unit: &str, lines: &[Line]) -> Result<()> {
    let all = || lines.iter().flat_map(|l| &l.points);
    if all().next().is_none() {
        return Ok(());
    }
    let fold = |of: fn(&(f64, f64)) -> f64, pick: fn(f64, f64) -> f64| all().map(of).reduce(pick).unwrap_or(1.0);
    let (left, right) = (fold(|p| p.0, f64::min) * 0.8, fold(|p| p.0, f64::max) * 1.25);
    let (low, high) = (fold(|p| p.1, f64::min) * 0.5, fold(|p| p.1, f64::max) * 3.0);
    let root = SVGBackend::new(file, (820, 460)).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("drawing {}: {error}", file.display());
    root.fill(&WHITE).map_err(|e| failed(&e))?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d((left..right).log_scale(), (low..high).log_scale())
        .map_err(|e| failed(&e))?;
    chart
        .configure_mesh()
        .x_desc("Services (10 endpoints each)")
        .y_desc(unit)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| if *y >= 10.0 { format!("{y:.0}") } else { format!("{y}") })
        .light_line_style(RGBColor(240, 240, 240))
        .draw()
        .map_err(|e| failed(&e))?;
    for (number, line) in lines.iter().enumerate().filter(|(_, l)| !l.points.is_empty()) {
        let colour = COLOURS[number % COLOURS.len()];
        let points = line.points.clone();
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))
            .map_err(|e| failed(&e))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        chart.draw_series(points.into_iter().map(|p| Circle::new(p, 3, colour.filled()))).map_err(|e| failed(&e))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(200, 200, 200))
        .label_font(("sans-serif", 13))
        .draw()
        .map_err(|e| failed(&e))?;
    root.present().map_err(|e| failed(&e))
}
