//! The table of `docs/snaps.md`: every state with every transition, found by trying them all.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use pelton_region_format::Fingerprint;

use super::{
    Answer, Command, Decider, Form, Job, Life, Limits, Saving, SnapEvent, SnapState, Version, WaiterId,
};
use crate::cache::Want;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/snaps.md");
const BEGIN: &str = "<!-- table: made from worker/src/snap/state.rs -->\n";
const END: &str = "<!-- end of the table -->\n";

/// So many loads are begun on the way to a state. A third one can replace one that has not reached the disk.
const LOADS_MAX: u64 = 3;
/// A failure has healed after this.
const HEALED: Duration = Duration::from_secs(3600);
/// Who asks.
const ASKER: WaiterId = WaiterId(9);

/// From the first to the last, in the order of the table.
const STATES: [&str; 15] = [
    "Cold",
    "Loading",
    "Loading, committing",
    "Hot, committing",
    "Hot, durable",
    "Hot, unsaved",
    "Warm",
    "Warm, warming",
    "NoData, committing",
    "NoData, durable",
    "NoData, unsaved",
    "Failed",
    "Failed, with files",
    "Closed",
    "Gone",
];

/// The place of a state in the list, and an event.
type Cause = (usize, &'static str);
/// What the asker is told, and the state after it.
type Effect = (String, &'static str);

/// What the decider commands on the way: always, or only sometimes.
struct Commands {
    always: BTreeSet<String>,
    ever: BTreeSet<String>,
}

#[test]
fn the_table_of_the_docs_is_what_the_decider_does() {
    let (transitions, states) = explore();
    assert!(states.len() > 1000, "only {} states were found", states.len());
    let table = render(&transitions);
    let page = fs::read_to_string(PAGE).expect("docs/snaps.md is there");
    let (before, rest) = page.split_once(BEGIN).expect("the page has the mark of the table's begin");
    let (found, after) = rest.split_once(END).expect("the page has the mark of the table's end");
    if std::env::var_os("PELTON_BLESS").is_some() {
        fs::write(PAGE, format!("{before}{BEGIN}{table}{END}{after}")).expect("the page can be written");
    } else {
        assert!(
            found == table,
            "docs/snaps.md is not what the decider does; PELTON_BLESS=1 rewrites it:\n{table}"
        );
    }
}

/// Every state in the list is reached from another one, and every one has events.
#[test]
fn every_state_is_in_the_table() {
    let (transitions, _) = explore();
    let left: BTreeSet<usize> = transitions.keys().map(|(state, _)| *state).collect();
    let reached: BTreeSet<&str> =
        transitions.values().flat_map(|effects| effects.keys().map(|(_, next)| *next)).collect();
    assert_eq!(left, (0..STATES.len()).collect());
    assert_eq!(reached, BTreeSet::from(STATES));
}

/// Goal: what is done at once is what the event would have done, and nothing is left to be done after it. Method: both, on
/// every state that is reached, at once and when failures have healed.
#[test]
fn what_is_done_at_once_is_what_the_event_does() {
    let (_, deciders) = explore();
    let (mut leased, mut released) = (0, 0);
    for decider in &deciders {
        for (_, event) in events(decider) {
            for now in [Duration::ZERO, HEALED] {
                let (mut next, mut commands) = (decider.clone(), Vec::new());
                next.on(now, event, &mut commands);
                let mut quick = decider.clone();
                match event {
                    SnapEvent::Lease { waiter, want, .. } => {
                        let version = quick.lease_at_once(want);
                        let answer = version.map(|version| Command::Answer(waiter, Answer::Lease(version)));
                        leased += usize::from(version.is_some());
                        match answer {
                            Some(answer) => assert_eq!((&commands[..], &quick), (&[answer][..], &next)),
                            None => assert_eq!(&quick, decider),
                        }
                    }
                    SnapEvent::Released { version } => match quick.release_at_once(version) {
                        true => {
                            released += 1;
                            assert_eq!((&commands[..], &quick), (&[][..], &next));
                        }
                        false => assert_eq!(&quick, decider),
                    },
                    _ => {}
                }
            }
        }
    }
    assert!(leased > 1000 && released > 1000, "{leased} leases, {released} releases of {}", deciders.len());
}

/// Tries every event on every state that can be reached with a few loads, leases and waiters.
fn explore() -> (BTreeMap<Cause, BTreeMap<Effect, Commands>>, HashSet<Decider>) {
    let limits = Limits::default();
    let mut known = HashSet::new();
    let mut open = vec![
        Decider::cold(limits),
        Decider::found(limits, version(1, 0), false),
        Decider::found(limits, version(1, 0), true),
    ];
    let mut transitions: BTreeMap<Cause, BTreeMap<Effect, Commands>> = BTreeMap::new();
    while let Some(decider) = open.pop() {
        if !known.insert(decider.clone()) {
            continue;
        }
        let state = state_name(&decider, Duration::ZERO);
        let healed = state_name(&decider, HEALED);
        if state != healed {
            let effects = transitions.entry((place(state), "time passes")).or_default();
            note(effects, (String::new(), healed), BTreeSet::new());
        }
        for (name, event) in events(&decider) {
            for now in [Duration::ZERO, HEALED] {
                if now > Duration::ZERO && decider.failures().next().is_none() {
                    continue;
                }
                let mut next = decider.clone();
                let mut commands = Vec::new();
                next.on(now, event, &mut commands);
                let waits = next.waiters.iter().any(|waiter| waiter.id == ASKER);
                let told =
                    own_answer(&commands).unwrap_or(if waits { "waits".into() } else { String::new() });
                let others = commands.iter().filter_map(command_name).collect();
                let effects = transitions.entry((place(state_name(&decider, now)), name)).or_default();
                note(effects, (told, state_name(&next, now)), others);
                if now == Duration::ZERO && within_bounds(&next) {
                    open.push(normal(next));
                }
            }
        }
    }
    (transitions, known)
}

fn note(effects: &mut BTreeMap<Effect, Commands>, effect: Effect, commands: BTreeSet<String>) {
    match effects.get_mut(&effect) {
        Some(known) => {
            known.always = known.always.intersection(&commands).cloned().collect();
            known.ever.extend(commands);
        }
        None => _ = effects.insert(effect, Commands { always: commands.clone(), ever: commands }),
    }
}

/// A few of each are enough to see all there is; without bounds there is no end.
fn within_bounds(decider: &Decider) -> bool {
    let hot_leases = decider.hot.as_ref().map_or(0, |hot| hot.leases);
    let in_a_row = decider.failures().map(|failure| failure.in_a_row).max().unwrap_or(0);
    decider.waiters.len() <= 1 && hot_leases <= 1 && decider.old.len() <= 1 && in_a_row <= 1
}

/// Who asked waits under a number of its own, so that the next one can ask.
fn normal(mut decider: Decider) -> Decider {
    for (number, waiter) in decider.waiters.iter_mut().enumerate() {
        waiter.id = WaiterId(number as u64);
    }
    decider
}

fn events(decider: &Decider) -> Vec<(&'static str, SnapEvent)> {
    let mut events = Vec::new();
    let fresh = (decider.load_last < LOADS_MAX).then_some(decider.load_last + 1);
    let target = decider.version().or(decider.load.map(|load| load.version));
    for want in [None, Some(0), Some(1)] {
        for offer in [None, Some(0), Some(1)] {
            let offer = match (offer, fresh) {
                (Some(offer), _) if want.is_some_and(|want| want != offer) => continue,
                (Some(_), None) => continue,
                (Some(offer), Some(load)) => Some(version(load, offer)),
                (None, _) => None,
            };
            let same = target
                .is_none_or(|target| want.is_none_or(|number| target.fingerprint == fingerprint(number)));
            let name = match (same, offer.is_some()) {
                (true, false) => "lease",
                (true, true) => "lease, with a loader",
                (false, false) => "lease of another fingerprint",
                (false, true) => "lease of another fingerprint, with a loader",
            };
            let want = want.map_or(Want::Latest, |number| Want::Fingerprint(fingerprint(number)));
            events.push((name, SnapEvent::Lease { waiter: ASKER, want, offer }));
        }
    }
    if let Some(load) = fresh {
        events.push(("write", SnapEvent::Write { waiter: ASKER, version: version(load, 0) }));
        events.push(("write", SnapEvent::Write { waiter: ASKER, version: version(load, 1) }));
    }
    events.extend(
        decider.waiters.first().map(|waiter| ("a waiter gives up", SnapEvent::GiveUp { waiter: waiter.id })),
    );
    events.push(("evict", SnapEvent::Evict { waiter: ASKER }));
    events.push(("flush", SnapEvent::Flush { waiter: ASKER }));
    events.push(("erase", SnapEvent::Erase { waiter: ASKER }));
    events.push(if decider.pinned { ("unpin", SnapEvent::Unpin) } else { ("pin", SnapEvent::Pin) });
    if decider.life == Life::Open {
        events.push(("close", SnapEvent::Close));
        events.push(("planning failed", SnapEvent::PlanFailed));
    }
    if let Some(load) = decider.load.filter(|load| !load.sealed) {
        let version = load.version;
        events.push(("sealed, in memory", SnapEvent::Sealed { version, form: Form::Image }));
        events.push(("sealed, in files only", SnapEvent::Sealed { version, form: Form::Direct }));
        events.push(("sealed, no blob", SnapEvent::Sealed { version, form: Form::Empty }));
        events.push(("load failed", SnapEvent::LoadFailed { version }));
        events.push(("load cancelled", SnapEvent::LoadCancelled { version }));
    }
    match decider.job {
        Some(Job::Commit(on_disk)) => {
            let version = on_disk.version;
            events.push(("committed", SnapEvent::Committed { version }));
            events.push(("commit failed", SnapEvent::CommitFailed { version }));
        }
        Some(Job::Remove(on_disk)) => {
            let version = on_disk.version;
            events.push(("files removed", SnapEvent::Removed { version }));
            events.push(("files not removed", SnapEvent::RemoveFailed { version }));
        }
        None => {}
    }
    if let Some(version) = decider.warming {
        events.push(("warmed", SnapEvent::Warmed { version }));
        events.push(("no memory to warm", SnapEvent::WarmRefused { version }));
        events.push(("warming failed", SnapEvent::WarmFailed { version }));
        events.push(("damage found", SnapEvent::Damaged { version }));
    }
    if let Some(hot) = decider.hot.as_ref() {
        let version = hot.version;
        if hot.leases > 0 {
            events.push(("a lease is dropped", SnapEvent::Released { version }));
        }
        if hot.leases > 0 && !hot.empty {
            events.push(("damage found", SnapEvent::Damaged { version }));
        }
        if hot.saving == Saving::Done && !hot.empty && !hot.broken {
            events.push(("damage found in the files alone", SnapEvent::FilesDamaged { version }));
        }
        if decider.warming.is_none() && hot.saving == Saving::Done && !hot.empty && !hot.broken {
            events.push(("the rest did not come", SnapEvent::WarmFailed { version }));
        }
    }
    for old in &decider.old {
        events
            .push(("a lease on a replaced version is dropped", SnapEvent::Released { version: old.version }));
    }
    events
}

fn state_name(decider: &Decider, now: Duration) -> &'static str {
    if decider.life == Life::Closed {
        return "Closed";
    }
    let saving = decider.hot.as_ref().map(|hot| hot.saving);
    match (decider.state(now), saving) {
        (SnapState::Gone, _) => "Gone",
        (SnapState::Hot, Some(Saving::Waiting | Saving::Running)) => "Hot, committing",
        (SnapState::Hot, Some(Saving::Failed)) => "Hot, unsaved",
        (SnapState::Hot, _) => "Hot, durable",
        (SnapState::NoData, Some(Saving::Waiting | Saving::Running)) => "NoData, committing",
        (SnapState::NoData, Some(Saving::Failed)) => "NoData, unsaved",
        (SnapState::NoData, _) => "NoData, durable",
        (SnapState::Warm, _) if decider.warming.is_some() => "Warm, warming",
        (SnapState::Warm, _) => "Warm",
        (SnapState::Failed, _) if decider.on_disk().is_some() => "Failed, with files",
        (SnapState::Failed, _) => "Failed",
        (SnapState::Loading, _) if decider.load.is_some_and(|load| load.sealed) => "Loading, committing",
        (SnapState::Loading, _) => "Loading",
        (SnapState::Cold, _) => "Cold",
    }
}

fn place(state: &str) -> usize {
    STATES.iter().position(|known| *known == state).expect("it is in the list")
}

fn own_answer(commands: &[Command]) -> Option<String> {
    commands.iter().find_map(|command| match command {
        Command::Answer(waiter, answer) if *waiter == ASKER => Some(answer_name(*answer)),
        _ => None,
    })
}

/// The command in words; nothing for the asker's own answer, which has a column of its own.
fn command_name(command: &Command) -> Option<String> {
    match command {
        Command::Answer(waiter, _) if *waiter == ASKER => None,
        Command::Answer(_, answer) => Some(format!("tell waiters: {}", answer_name(*answer))),
        other => Some(words(&format!("{other:?}"))),
    }
}

fn answer_name(answer: Answer) -> String {
    words(&format!("{answer:?}"))
}

/// `StartLoad(..)` as `start load`.
fn words(name: &str) -> String {
    let mut words = String::new();
    for c in name.chars().take_while(|c| c.is_alphabetic()) {
        if c.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(c.to_ascii_lowercase());
    }
    words
}

fn render(transitions: &BTreeMap<Cause, BTreeMap<Effect, Commands>>) -> String {
    let mut table =
        String::from("| state | event | the asker is told | commands | becomes |\n|---|---|---|---|---|\n");
    for ((place, event), effects) in transitions {
        let state = &STATES[*place];
        for ((told, next), commands) in effects {
            // Nothing to see.
            if told.is_empty() && commands.ever.is_empty() && state == next {
                continue;
            }
            let always = commands.always.iter().cloned();
            let sometimes = commands.ever.difference(&commands.always).map(|name| format!("({name})"));
            let commands: Vec<String> = always.chain(sometimes).collect();
            let next = if state == next { "" } else { next };
            writeln!(table, "| {state} | {event} | {told} | {} | {next} |", commands.join(", "))
                .expect("a string takes it");
        }
    }
    table
}

fn fingerprint(number: u8) -> Fingerprint {
    Fingerprint::from_bytes([number; 32])
}

fn version(load: u64, number: u8) -> Version {
    Version { load, fingerprint: fingerprint(number) }
}
