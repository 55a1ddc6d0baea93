//! What the tender goes by: where clearing begins and ends, and how long slices may be idle. All of it may change while
//! the cache is open, and holds from the next decision on.

use pelton_region_format::{Key, KeyPattern};

use super::policy::{Marks, Ttls};
use crate::config::ConfigError;

/// Nobody means less: a slice would be gone before anybody could ask for it again.
const TTL_MS_MIN: u64 = 1000;
/// Ten years. Longer is [`Ttls::NEVER`].
const TTL_MS_MAX: u64 = 3650 * 24 * 60 * 60 * 1000;

/// Where clearing begins and where it ends, in percent of a budget. By default from 90 down to 80.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(deny_unknown_fields))]
pub struct MarksPercent {
    /// Where it ends.
    pub low: u8,
    /// Where it begins.
    pub high: u8,
}

impl Default for MarksPercent {
    fn default() -> MarksPercent {
        MarksPercent { low: 80, high: 90 }
    }
}

impl MarksPercent {
    /// Refuses what is out of order.
    pub(crate) fn check(self, name: &str) -> Result<MarksPercent, ConfigError> {
        let MarksPercent { low, high } = self;
        if low <= high && high <= 100 {
            return Ok(self);
        }
        Err(ConfigError {
            name: name.to_owned(),
            value: format!("{low} to {high} percent"),
            allowed: "a low mark up to the high one, and that up to 100".to_owned(),
        })
    }

    pub(crate) fn of(self, capacity: u64) -> Marks {
        let part = |percent: u8| {
            u64::try_from(u128::from(capacity) * u128::from(percent) / 100).expect("less than the whole")
        };
        Marks::new(part(self.low), part(self.high), capacity).expect("they were checked when they were set")
    }
}

impl Ttls {
    /// Refuses what is out of range.
    pub(crate) fn check(self, pattern: &KeyPattern) -> Result<Ttls, ConfigError> {
        let fields = [("evict", self.evict_ms), ("flush", self.flush_ms), ("erase", self.erase_ms)];
        fields.into_iter().try_for_each(|(name, ms)| check_ttl(name, pattern, ms).map(drop))?;
        Ok(self)
    }
}

/// Refuses what is out of range.
pub(crate) fn check_ttl(name: &str, pattern: &KeyPattern, ms: u64) -> Result<u64, ConfigError> {
    if ms == u64::MAX || (TTL_MS_MIN..=TTL_MS_MAX).contains(&ms) {
        return Ok(ms);
    }
    Err(ConfigError {
        name: format!("{name}_after of view {pattern}"),
        value: format!("{ms} ms"),
        allowed: "1 s to 3650 days".to_owned(),
    })
}

/// What a view says of how long its slices may be idle; the rest others may say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PartialTtls {
    pub(crate) evict_ms: Option<u64>,
    pub(crate) flush_ms: Option<u64>,
    pub(crate) erase_ms: Option<u64>,
}

/// All of it at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) memory: MarksPercent,
    pub(crate) disks: MarksPercent,
    /// The first that matches a slice counts.
    ttls: Vec<(KeyPattern, Ttls)>,
    /// Where none does: of each setting, the first view that matches and has it.
    views: Vec<(KeyPattern, PartialTtls)>,
}

impl Rules {
    pub(crate) fn new(
        memory: MarksPercent,
        disks: MarksPercent,
        ttls: Vec<(KeyPattern, Ttls)>,
        views: Vec<(KeyPattern, PartialTtls)>,
    ) -> Rules {
        Rules { memory, disks, ttls, views }
    }

    /// Says how long some slices may be idle, before all that was said about them so far.
    pub(crate) fn set_ttls(&mut self, pattern: KeyPattern, ttls: Ttls) {
        self.ttls.retain(|(known, _)| *known != pattern);
        self.ttls.insert(0, (pattern, ttls));
    }

    pub(crate) fn ttls_of(&self, key: &Key) -> Ttls {
        if let Some((_, ttls)) = self.ttls.iter().find(|(pattern, _)| pattern.matches(key)) {
            return *ttls;
        }
        let views = || self.views.iter().filter(|(pattern, _)| pattern.matches(key)).map(|(_, ttls)| ttls);
        let default = Ttls::default();
        Ttls {
            evict_ms: views().find_map(|ttls| ttls.evict_ms).unwrap_or(default.evict_ms),
            flush_ms: views().find_map(|ttls| ttls.flush_ms).unwrap_or(default.flush_ms),
            erase_ms: views().find_map(|ttls| ttls.erase_ms).unwrap_or(default.erase_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ttls(evict_ms: u64) -> Ttls {
        Ttls { evict_ms, ..Ttls::default() }
    }

    #[test]
    fn the_first_rule_that_matches_counts_and_a_new_one_comes_first() {
        let pattern = |text: &str| text.parse::<KeyPattern>().unwrap();
        let first = vec![(pattern("a/b"), ttls(1)), (pattern("a/*"), ttls(2))];
        let mut rules = Rules::new(MarksPercent::default(), MarksPercent::default(), first, Vec::new());
        let of = |rules: &Rules, key: &str| rules.ttls_of(&key.parse().unwrap()).evict_ms;
        let all = |rules: &Rules| ["a/b@1#0", "a/c@1#0", "b/b@1#0"].map(|key| of(rules, key));
        assert_eq!(all(&rules), [1, 2, Ttls::default().evict_ms]);
        rules.set_ttls(pattern("a/*"), ttls(3));
        assert_eq!(all(&rules), [3, 3, Ttls::default().evict_ms]);
        assert_eq!(rules.ttls.len(), 2, "it took the place of the one that was there");
    }

    #[test]
    fn of_each_time_the_first_view_counts_that_says_it() {
        let view = |text: &str, evict_ms, flush_ms| {
            let ttls = PartialTtls { evict_ms, flush_ms, erase_ms: None };
            (text.parse::<KeyPattern>().unwrap(), ttls)
        };
        let views = vec![view("a/b", Some(1), None), view("a/*", Some(2), Some(u64::MAX))];
        let marks = MarksPercent::default();
        let mut rules = Rules::new(marks, marks, Vec::new(), views);
        let of = |rules: &Rules, key: &str| rules.ttls_of(&key.parse().unwrap());
        let default = Ttls::default();
        assert_eq!(of(&rules, "a/b@1#0"), Ttls { evict_ms: 1, flush_ms: u64::MAX, ..default });
        assert_eq!(of(&rules, "a/c@1#0"), Ttls { evict_ms: 2, flush_ms: u64::MAX, ..default });
        assert_eq!(of(&rules, "b/b@1#0"), default);
        rules.set_ttls("a/c".parse().unwrap(), Ttls::NEVER);
        assert_eq!(of(&rules, "a/c@1#0"), Ttls::NEVER, "what is said later comes before all of it");
    }

    #[test]
    fn what_can_not_be_meant_is_refused_with_name_value_and_range() {
        let view = "acme/*".parse::<KeyPattern>().unwrap();
        let told = Ttls { flush_ms: 999, ..Ttls::default() }.check(&view).unwrap_err().to_string();
        assert_eq!(told, "flush_after of view acme/*@*#* is 999 ms, allowed is 1 s to 3650 days");
        assert!(ttls(TTL_MS_MAX + 1).check(&view).is_err());
        assert_eq!(Ttls::NEVER.check(&view), Ok(Ttls::NEVER));
        let told = MarksPercent { low: 95, high: 90 }.check("disk_marks").unwrap_err().to_string();
        assert_eq!(
            told,
            "disk_marks is 95 to 90 percent, allowed is a low mark up to the high one, and that up to 100"
        );
        assert!(MarksPercent { low: 1, high: 101 }.check("memory_marks").is_err());
        assert_eq!(MarksPercent { low: 0, high: 100 }.of(u64::MAX).high(), u64::MAX);
    }
}
