//! The colours of plots. In: nothing. Out: as many colours as a plot may need.

use plotters::style::RGBColor;

/// Colours of plots, distinguishable also for those who see colours differently.
pub const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
];
