//! The older text format of Prometheus, for readers that do not ask for OpenMetrics.
//!
//! The formats differ in three things that matter here: the older one describes a counter under the
//! name of its samples, which ends in `_total`; it has no units; it has no end mark.

use std::collections::HashSet;

/// The same metrics in text format 0.0.4.
pub fn from_openmetrics(text: &str) -> String {
    let counters: HashSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut classic = String::with_capacity(text.len());
    for line in text.lines() {
        if line.starts_with("# UNIT ") || line == "# EOF" {
            continue;
        }
        match described(line).filter(|(_, name, _)| counters.contains(name)) {
            Some((what, name, rest)) => {
                classic.push_str(&format!("# {what} {name}_total {rest}"));
            }
            None => classic.push_str(line),
        }
        classic.push('\n');
    }
    classic
}

/// Splits `# HELP name text` or `# TYPE name kind` into its parts.
fn described(line: &str) -> Option<(&str, &str, &str)> {
    let line = line.strip_prefix("# ")?;
    let (what, rest) = line.split_once(' ')?;
    let (name, rest) = rest.split_once(' ')?;
    ["HELP", "TYPE"]
        .contains(&what)
        .then_some((what, name, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_described_under_the_name_of_their_samples() {
        let openmetrics = "# HELP a Calls.\n# TYPE a counter\na_total{b=\"# HELP a\"} 1\n\
            # HELP s_seconds Time.\n# TYPE s_seconds histogram\n# UNIT s_seconds seconds\ns_seconds_sum 1.0\n# EOF\n";
        let classic = "# HELP a_total Calls.\n# TYPE a_total counter\na_total{b=\"# HELP a\"} 1\n\
            # HELP s_seconds Time.\n# TYPE s_seconds histogram\ns_seconds_sum 1.0\n";
        assert_eq!(from_openmetrics(openmetrics), classic);
    }
}
