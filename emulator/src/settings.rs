//! What the environment chooses.

/// Which warps the scheduler keeps waiting as long as another can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// None: each in turn.
    Fair,
    /// One, for the whole life of its cluster.
    One,
    /// A third of them.
    Several,
    /// One after the other, for a while.
    Changing,
}

impl Mode {
    /// All of them, for a choice by number.
    pub const ALL: [Self; 4] = [Self::Fair, Self::One, Self::Several, Self::Changing];
}

/// How launches run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// `STEM_EMULATOR_SEED`: start of every random choice; the same seed gives the same run.
    pub seed: u64,
    /// `STEM_EMULATOR_MODE`: `fair`, `one`, `several`, `changing` or `random`, which is `None` and lets each cluster draw.
    pub mode: Option<Mode>,
    /// `STEM_EMULATOR_SMS`: multiprocessors that the device claims to have.
    pub multiprocessors: u32,
    /// `STEM_EMULATOR_STEPS`: instructions of a cluster after which it counts as hung.
    pub steps: u64,
    /// `STEM_EMULATOR_LOG`: print each launch and its time.
    pub log: bool,
    /// `STEM_EMULATOR_RACES`: whether accesses of shared memory that nothing orders are errors.
    pub races: bool,
    /// `STEM_EMULATOR_PROFILE`: print the instructions of each warp.
    pub profile: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { seed: 1, mode: Some(Mode::Fair), multiprocessors: 4, steps: 4_000_000_000, log: false, races: true, profile: false }
    }
}

impl Settings {
    /// From variables of the environment, defaults where one is not set or cannot be read.
    pub fn from_env() -> Self {
        Self::from(|name| std::env::var(name).ok())
    }

    fn from(get: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| get(name).and_then(|v| v.parse::<u64>().ok());
        let set = |name: &str| get(name).is_some_and(|v| !v.is_empty() && v != "0");
        let default = Self::default();
        let mode = match get("STEM_EMULATOR_MODE").as_deref() {
            Some("random") => None,
            Some("one") => Some(Mode::One),
            Some("several") => Some(Mode::Several),
            Some("changing") => Some(Mode::Changing),
            _ => Some(Mode::Fair),
        };
        Self {
            seed: number("STEM_EMULATOR_SEED").unwrap_or(default.seed),
            mode,
            multiprocessors: number("STEM_EMULATOR_SMS").map_or(default.multiprocessors, |n| n.clamp(1, 1024) as u32),
            steps: number("STEM_EMULATOR_STEPS").unwrap_or(default.steps),
            log: set("STEM_EMULATOR_LOG"),
            races: get("STEM_EMULATOR_RACES").is_none_or(|v| v != "0"),
            profile: set("STEM_EMULATOR_PROFILE"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_and_nonsense_is_the_default() {
        let with = |name: &'static str, value: &'static str| Settings::from(move |n| (n == name).then(|| value.to_owned()));
        assert_eq!(with("STEM_EMULATOR_SEED", "7").seed, 7);
        assert_eq!(with("STEM_EMULATOR_SEED", "seven").seed, 1);
        assert_eq!(with("STEM_EMULATOR_MODE", "several").mode, Some(Mode::Several));
        assert_eq!(with("STEM_EMULATOR_MODE", "random").mode, None);
        assert_eq!(with("STEM_EMULATOR_SMS", "0").multiprocessors, 1);
        assert!(with("STEM_EMULATOR_LOG", "1").log);
        assert!(with("STEM_EMULATOR_LOG", "1").races && !with("STEM_EMULATOR_RACES", "0").races);
        assert!(!with("STEM_EMULATOR_LOG", "0").log);
    }
}
