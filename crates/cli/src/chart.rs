//! Curves of accuracies: as blocks in a terminal, and as an SVG.
//!
//! Owns coordinates and style. A panel's title says what its points mean; both forms draw the same
//! points.

use std::fmt::Write as _;

use crate::output::grouped;

/// A point of a curve.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// Verdicts so far.
    pub x: u64,
    /// An accuracy from 0 to 1; `None`: not even a perfect prediction suffices.
    pub y: Option<f64>,
}

/// A curve over its own axis.
#[derive(Debug, Clone)]
pub struct Panel {
    /// The quantity on the axis.
    pub title: &'static str,
    /// Whether the axis is logarithmic, by log(1 + x).
    pub is_logarithmic: bool,
    /// From left to right.
    pub points: Vec<Point>,
}

impl Panel {
    /// The place of a count on the axis, from 0 to 1.
    fn across(&self, x: u64) -> f64 {
        let last = self.points.last().map_or(0, |point| point.x).max(1);
        if self.is_logarithmic {
            (x as f64).ln_1p() / (last as f64).ln_1p()
        } else {
            x as f64 / last as f64
        }
    }

    /// Counts to write below the axis: its ends, and round numbers between them that leave room.
    fn ticks(&self) -> Vec<u64> {
        let last = self.points.last().map_or(0, |point| point.x);
        let mut ticks = vec![0];
        let round = (0..).map(|n: u32| [1, 2, 5][n as usize % 3] * 10u64.pow(n / 3));
        for tick in round.take_while(|tick| *tick < last).chain([last]) {
            let before = ticks.last().copied().unwrap_or(0);
            let gap = self.across(tick) - self.across(before);
            let is_end = tick == last;
            // The end is always written, and replaces a number that is too near.
            if is_end && gap < 0.12 && ticks.len() > 1 {
                ticks.pop();
            }
            if is_end || (gap >= 0.12 && (!self.is_logarithmic || tick.ilog10() > 0 || tick == 1)) {
                ticks.push(tick);
            }
        }
        ticks.dedup();
        ticks
    }

    /// The point at or before a place on the axis.
    fn at(&self, across: f64) -> Option<Point> {
        let before = self.points.iter().rev();
        before
            .copied()
            .find(|point| self.across(point.x) <= across + 1e-9)
    }
}

/// Rows and columns of a plot in the terminal.
const ROWS: usize = 8;
const COLUMNS: usize = 56;
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The panels for a terminal, one below the other; at the floor a column is empty.
pub fn blocks(panels: &[Panel], floor: f64) -> String {
    let drawn: Vec<String> = panels
        .iter()
        .filter(|panel| panel.points.len() > 1)
        .map(|panel| blocks_of(panel, floor))
        .collect();
    drawn.join("\n\n")
}

fn blocks_of(panel: &Panel, floor: f64) -> String {
    let columns: Vec<Option<usize>> = (0..COLUMNS)
        .map(|column| {
            let point = panel.at(column as f64 / (COLUMNS - 1) as f64)?;
            let share = (point.y? - floor) / (1.0 - floor);
            Some((share * (ROWS * 8) as f64).round() as usize)
        })
        .collect();
    let mut lines = vec![format!("least accuracy certified, {}", panel.title)];
    for row in (0..ROWS).rev() {
        let label = match row {
            _ if row == ROWS - 1 => "100 %".to_owned(),
            0 => format!("{:.0} %", 100.0 * floor),
            _ => String::new(),
        };
        let cells = columns.iter().map(|height| match height {
            Some(height) => EIGHTHS[height.saturating_sub(row * 8).min(8)],
            // Out of reach: even 100 % is too little.
            None => '×',
        });
        lines.push(format!(
            "{label:>6} ┤{}",
            cells.collect::<String>().trim_end()
        ));
    }
    lines.push(format!("{:>6} └{}", "", "─".repeat(COLUMNS)));
    lines.push(format!("{:>8}{}", "", axis(panel)));
    lines.join("\n")
}

/// The counts below an axis, as a line of text. The end is always written; a number that would touch it, or a later
/// number, is left out.
fn axis(panel: &Panel) -> String {
    let mut labels: Vec<(usize, String)> = Vec::new();
    for tick in panel.ticks().into_iter().rev() {
        let text = grouped(tick);
        let place = (panel.across(tick) * (COLUMNS - 1) as f64).round() as usize;
        let start = place.min(COLUMNS - text.len());
        if labels
            .last()
            .is_none_or(|(next, _)| start + text.len() < *next)
        {
            labels.push((start, text));
        }
    }
    let mut line = String::new();
    for (start, text) in labels.into_iter().rev() {
        let padding = start - line.len();
        line.push_str(&" ".repeat(padding));
        line.push_str(&text);
    }
    line
}

/// Size of a panel, and its margins, in pixels of the SVG.
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 72.0;
const GAP: f64 = 72.0;

/// Colours follow the reader's theme. Text stays text, so that readers can search it and have it
/// read aloud.
const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#24292f}\
    .title{font-size:16px;font-weight:600}.quiet{fill:#57606a}\
    .grid{stroke:#d0d7de;stroke-width:1}.curve{fill:none;stroke:#0969da;stroke-width:2.5;stroke-linejoin:round}\
    .area{fill:#0969da;opacity:.12}.page{fill:#fff}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.quiet{fill:#9198a1}.grid{stroke:#3d444d}\
    .curve{stroke:#4493f8}.area{fill:#4493f8}.page{fill:#0d1117}}";

/// The panels side by side as one SVG; the vertical axis goes from `floor` to 1.
pub fn svg(title: &str, panels: &[Panel], floor: f64) -> String {
    let shown: Vec<&Panel> = panels
        .iter()
        .filter(|panel| panel.points.len() > 1)
        .collect();
    let count = shown.len().max(1) as f64;
    let width = LEFT + count * WIDTH + (count - 1.0) * GAP + 24.0;
    let height = TOP + HEIGHT + 64.0;
    let title = escaped(title);
    let mut drawn = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-labelledby=\"t\">\
        <title id=\"t\">{title}</title><style>{STYLE}</style><rect class=\"page\" width=\"100%\" height=\"100%\" rx=\"8\"/>\
        <text class=\"title\" x=\"{LEFT}\" y=\"32\">{title}</text>"
    );
    for (n, panel) in shown.iter().enumerate() {
        let left = LEFT + n as f64 * (WIDTH + GAP);
        panel_svg(&mut drawn, panel, left, floor);
    }
    drawn.push_str("</svg>\n");
    drawn
}

fn panel_svg(drawn: &mut String, panel: &Panel, left: f64, floor: f64) {
    let down = |y: f64| TOP + HEIGHT * (1.0 - (y - floor) / (1.0 - floor));
    let across = |x: u64| left + WIDTH * panel.across(x);
    // Writing to a string cannot fail.
    let mut put = |text: std::fmt::Arguments<'_>| {
        let _ = drawn.write_fmt(text);
    };
    put(format_args!(
        "<text class=\"quiet\" x=\"{left}\" y=\"{}\">{}</text>",
        TOP - 14.0,
        escaped(panel.title)
    ));
    for quarter in 0..=4 {
        let y = floor + (1.0 - floor) * f64::from(quarter) / 4.0;
        let at = down(y);
        put(format_args!(
            "<line class=\"grid\" x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
            <text class=\"quiet\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{:.0} %</text>",
            left + WIDTH,
            left - 8.0,
            at + 4.0,
            100.0 * y
        ));
    }
    for tick in panel.ticks() {
        put(format_args!(
            "<text class=\"quiet\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{}\">{}</text>",
            across(tick),
            TOP + HEIGHT + 22.0,
            grouped(tick)
        ));
    }
    let reached: Vec<(f64, f64)> = panel
        .points
        .iter()
        .filter_map(|point| Some((across(point.x), down(point.y?))))
        .collect();
    let (Some(first), Some(last)) = (reached.first(), reached.last()) else {
        put(format_args!(
            "<text x=\"{}\" y=\"{}\">not even a perfect prediction is certified</text>",
            left + 16.0,
            TOP + HEIGHT / 2.0
        ));
        return;
    };
    let line: Vec<String> = reached
        .iter()
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    let line = line.join(" ");
    let bottom = TOP + HEIGHT;
    put(format_args!(
        "<polygon class=\"area\" points=\"{:.1},{bottom} {line} {:.1},{bottom}\"/><polyline class=\"curve\" points=\"{line}\"/>",
        first.0, last.0
    ));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(is_logarithmic: bool) -> Panel {
        let point = |(x, y)| Point { x, y };
        Panel {
            title: "after <n> & more",
            is_logarithmic,
            points: [
                (0, Some(0.5)),
                (10, Some(0.75)),
                (1_000, Some(1.0)),
                (10_000, None),
            ]
            .map(point)
            .to_vec(),
        }
    }

    #[test]
    fn blocks_rise_from_the_floor_to_the_top() {
        let drawn = blocks(&[panel(true)], 0.5);
        let lines: Vec<&str> = drawn.lines().collect();
        assert_eq!(lines.len(), ROWS + 3, "{drawn}");
        assert!(lines[1].starts_with(" 100 % ┤"), "{drawn}");
        // The top row is empty until the curve reaches it; crosses mark what is out of reach.
        assert!(lines[1].contains("  ") && lines[1].contains('█'), "{drawn}");
        assert!(lines[1].ends_with('×'), "{drawn}");
        assert!(lines[ROWS].starts_with("  50 % ┤"), "{drawn}");
        let axis = lines[ROWS + 2].trim();
        assert!(axis.starts_with('0') && axis.ends_with("10,000"), "{drawn}");
    }

    #[test]
    fn a_panel_of_one_point_is_not_drawn() {
        let mut one = panel(false);
        one.points.truncate(1);
        assert_eq!(blocks(&[one], 0.5), "");
    }

    #[test]
    fn an_svg_is_well_formed_and_has_its_curve() {
        let drawn = svg("p < 1 & more", &[panel(true), panel(false)], 0.5);
        assert!(drawn.contains("<title id=\"t\">p &lt; 1 &amp; more</title>"));
        assert_eq!(drawn.matches("<polyline").count(), 2);
        // The best and the worst value within reach are on the frame.
        assert!(
            drawn.contains(&format!("{LEFT:.1},{:.1}", TOP + HEIGHT)),
            "{drawn}"
        );
        for element in ["svg", "title", "style", "text"] {
            let opened = drawn.matches(&format!("<{element}")).count();
            assert_eq!(
                opened,
                drawn.matches(&format!("</{element}>")).count(),
                "{element}"
            );
        }
    }
}
