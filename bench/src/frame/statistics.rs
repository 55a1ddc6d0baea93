//! The few numbers that stand for many runs.

/// A middle value and how far the others lie from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// Panics on no values, and on one that is not a number: both are our bugs.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Summary {
        let mut values: Vec<f64> = values.into_iter().collect();
        assert!(!values.is_empty());
        assert!(values.iter().all(|value| value.is_finite()));
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            (values[middle - 1] + values[middle]) / 2.0
        } else {
            values[middle]
        };
        Summary { median, min: values[0], max: values[values.len() - 1] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        assert_eq!(Summary::of([3.0]), Summary { median: 3.0, min: 3.0, max: 3.0 });
        assert_eq!(Summary::of([9.0, 1.0, 2.0]), Summary { median: 2.0, min: 1.0, max: 9.0 });
        assert_eq!(Summary::of([4.0, 1.0, 2.0, 100.0]), Summary { median: 3.0, min: 1.0, max: 100.0 });
    }
}
