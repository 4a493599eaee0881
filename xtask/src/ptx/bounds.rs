//! Launch bounds of every kernel, which rustc has no attribute for.
//!
//! Without `.maxntid` ptxas cannot know a thread's register budget and ignores `setmaxnreg` (warning C7508).

/// Launch bounds of an entry, or of all entries that share a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Entry name or prefix; the longest that fits wins.
    pub prefix: &'static str,
    /// Threads of a block, the only launch size the entry may have (`.maxntid`).
    pub threads: u32,
    /// Blocks per SM that ptxas must leave registers for (`.minnctapersm`).
    pub blocks_per_sm: u32,
}

const fn one(prefix: &'static str, threads: u32) -> Bounds {
    Bounds { prefix, threads, blocks_per_sm: 1 }
}

/// Threads per block, by entry. The host launches with the numbers of the manifest, which come from here.
pub const TABLE: &[Bounds] = &[
    one("append_kv_", 128),
    // 160 KiB of pages under way in a multiprocessor; with six blocks norms wait for registers.
    Bounds { prefix: "summarize_kv_", threads: 256, blocks_per_sm: 5 },
    one("select_stem", 896), // four consumer warpgroups, two that sum queries and make value terms, one of the warps that copy and hand over
    one("select_probe_means", 128),
    one("select_probe_lists", 640), // four consumer warpgroups and one producer warpgroup
    one("lists_", 256),
    one("attend_", 384), // one producer and two consumer warpgroups
    one("probe_", 128),
    one("probe_rate_", 384),      // instructions of one or two warpgroups beside the products of the others
    one("probe_setmaxnreg", 384), // a change of budgets needs three warpgroups to change them between
];

/// Generated files: entries whose name starts with the family's name and `_` go to `<family>.ptx`.
pub const FAMILIES: &[&str] = &["append_kv", "summarize_kv", "select_probe", "select", "lists", "attend", "probe"];

/// The bounds of `entry`, if the table has them.
pub fn of(entry: &str) -> Option<Bounds> {
    TABLE.iter().filter(|b| entry.starts_with(b.prefix)).max_by_key(|b| b.prefix.len()).copied()
}

/// The family `entry` belongs to.
pub fn family(entry: &str) -> Option<&'static str> {
    FAMILIES.iter().copied().find(|f| entry.strip_prefix(f).is_some_and(|rest| rest.starts_with('_')))
}
