//! Something that is measured once and has a limit, such as memory: not a rate, and not a pair.

use serde::Serialize;

/// What a gauge is called and what it is held to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GaugeCase {
    pub(crate) bench: &'static str,
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// What the limit is.
    pub(crate) against: &'static str,
    /// The ratio that we want at most. Missing it is shown, and fails nothing.
    pub(crate) ratio_max: f64,
}

/// What was measured, and the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Gauge {
    pub(crate) value: f64,
    pub(crate) limit: f64,
}

impl Gauge {
    pub(super) fn ratio(&self) -> f64 {
        self.value / self.limit
    }

    /// Under the heads of the table as far as they fit: less is better here, and the row says so.
    pub(super) fn line(&self, case: &GaugeCase) -> String {
        let verdict = if self.ratio() <= case.ratio_max { "met" } else { "over" };
        let value = format!("{:.0} {}", self.value, case.unit);
        let limit = format!("{:.0} {}", self.limit, case.unit);
        format!(
            "{:<24} {:<13} {value:>11} {limit:>11} {:>6.3} {:<8} <={:.2} {verdict}",
            case.name,
            case.against,
            self.ratio(),
            "",
            case.ratio_max,
        )
    }

    /// Begins with the fields that every line has.
    pub(super) fn json(&self, case: &GaugeCase, seed: u64) -> String {
        let line = JsonLine {
            bench: case.bench,
            case: case.name,
            value: self.value,
            unit: case.unit,
            against: case.against,
            ratio: self.ratio(),
            runs: 1,
            seed,
            goal_max: case.ratio_max,
            limit_value: self.limit,
        };
        serde_json::to_string(&line).expect("numbers and text have a JSON form")
    }
}

#[derive(Serialize)]
struct JsonLine<'a> {
    bench: &'a str,
    case: &'a str,
    value: f64,
    unit: &'a str,
    against: &'a str,
    ratio: f64,
    runs: u32,
    seed: u64,
    /// At most this ratio: not `goal`, which is at least.
    goal_max: f64,
    limit_value: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASE: GaugeCase =
        GaugeCase { bench: "load", name: "memory", unit: "MiB", against: "budget+64 MiB", ratio_max: 1.0 };

    #[test]
    fn less_than_the_limit_is_met_and_more_is_over() {
        let met = Gauge { value: 96.0, limit: 128.0 };
        assert_eq!(
            met.line(&CASE),
            "memory                   budget+64 MiB      96 MiB     128 MiB  0.750          <=1.00 met",
        );
        assert!(Gauge { value: 129.0, limit: 128.0 }.line(&CASE).ends_with("over"));
        let json = met.json(&CASE, 7);
        assert!(json.starts_with(
            "{\"bench\":\"load\",\"case\":\"memory\",\"value\":96.0,\"unit\":\"MiB\",\"against\":\"budget+64 MiB\",\
             \"ratio\":0.75,\"runs\":1,\"seed\":7,"
        ));
    }
}
