//! What an operator is told of slots.

use wharf_model::policy::SlotName;

/// Something that happened in a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Where.
    pub slot: SlotName,
    /// What.
    pub kind: NoticeKind,
    /// Name and version of the plugin that it is about.
    pub plugin: String,
    /// The same for people.
    pub detail: String,
}

/// Kinds of notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoticeKind {
    /// A plugin was put in, or what is built in came back by the operator's wish.
    Swapped,
    /// A plugin passed its probation.
    Confirmed,
    /// A plugin failed to answer.
    Struck,
    /// A plugin was taken out until a retry.
    Quarantined,
    /// A plugin came back from quarantine.
    Restored,
    /// What was there before came back.
    RolledBack,
}
