//! Latency against load as SVG: both axes logarithmic, p50 dashed, p99 drawn through.

use std::fmt::Write as _;

use super::report::Point;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 160.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;
const COLOURS: [&str; 4] = ["#0b6e4f", "#c8553d", "#6c757d", "#3d5a80"];

/// A logarithmic axis over whole decades.
struct Axis {
    lowest: i32,
    highest: i32,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let lowest = values.clone().fold(f64::INFINITY, f64::min).log10().floor() as i32;
        let highest = values.fold(f64::NEG_INFINITY, f64::max).log10().ceil() as i32;
        Self { lowest, highest: highest.max(lowest + 1), from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value.log10() - f64::from(self.lowest)) / f64::from(self.highest - self.lowest);
        self.from + part * (self.to - self.from)
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        (self.lowest..=self.highest).map(|power| 10f64.powi(power))
    }
}

pub fn latency_against_load(curves: &[(String, Vec<Point>)]) -> String {
    let points = || curves.iter().flat_map(|(_, points)| points);
    let rate = Axis::over(points().map(|point| point.rate), LEFT, WIDTH - RIGHT);
    let latencies = points().flat_map(|point| [point.p50_ms, point.p99_ms]);
    let latency = Axis::over(latencies.filter(|ms| *ms > 0.0), HEIGHT - BOTTOM, TOP);
    let mut svg = String::new();
    write(&mut svg, curves, &rate, &latency).expect("a string takes everything");
    svg
}

fn write(
    svg: &mut String,
    curves: &[(String, Vec<Point>)],
    rate: &Axis,
    latency: &Axis,
) -> std::fmt::Result {
    writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="#fff"/>
<text x="{LEFT}" y="26" font-size="16">Latency against load: one server core, 10 scalars → 5 features</text>"##
    )?;
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for value in rate.decades() {
        let x = rate.at(value);
        writeln!(
            svg,
            r##"<line x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{bottom}" stroke="#ddd"/>"##
        )?;
        let y = bottom + 20.0;
        writeln!(
            svg,
            r##"<text x="{x:.1}" y="{y}" text-anchor="middle">{}</text>"##,
            thousands(value)
        )?;
    }
    for value in latency.decades() {
        let (x, y) = (LEFT - 8.0, latency.at(value));
        writeln!(
            svg,
            r##"<line x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}" stroke="#ddd"/>"##
        )?;
        let baseline = y + 4.0;
        writeln!(svg, r##"<text x="{x}" y="{baseline:.1}" text-anchor="end">{value}</text>"##)?;
    }
    let middle = (LEFT + right) / 2.0;
    let y = HEIGHT - 16.0;
    writeln!(
        svg,
        r##"<text x="{middle}" y="{y}" text-anchor="middle">requests a second offered (open loop, Poisson)</text>"##
    )?;
    let middle = (TOP + bottom) / 2.0;
    writeln!(
        svg,
        r##"<text x="20" y="{middle}" text-anchor="middle" transform="rotate(-90 20 {middle})">milliseconds from the intended moment of sending</text>"##
    )?;
    for (index, (name, points)) in curves.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let path = |of: fn(&Point) -> f64| -> String {
            let place =
                |point: &Point| format!("{:.1},{:.1}", rate.at(point.rate), latency.at(of(point)));
            points.iter().map(place).collect::<Vec<_>>().join(" ")
        };
        let p99 = path(|point| point.p99_ms);
        let p50 = path(|point| point.p50_ms);
        writeln!(
            svg,
            r##"<polyline points="{p99}" fill="none" stroke="{colour}" stroke-width="2.5"/>"##
        )?;
        writeln!(
            svg,
            r##"<polyline points="{p50}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-dasharray="5 4"/>"##
        )?;
        let (x, y) = (right + 16.0, TOP + 20.0 + 44.0 * index as f64);
        writeln!(svg, r##"<text x="{x}" y="{y}" fill="{colour}">{name}</text>"##)?;
        let y = y + 17.0;
        writeln!(
            svg,
            r##"<text x="{x}" y="{y}" fill="{colour}" font-size="11">— p99   - - p50</text>"##
        )?;
    }
    writeln!(svg, "</svg>")
}

fn thousands(value: f64) -> String {
    if value >= 1000.0 { format!("{},000", value / 1000.0) } else { format!("{value}") }
}
