//! What can happen, one step after the other, and how a seed becomes a sequence of it.

use super::{
    relay::{Findings, Relay, Vices},
    server::{Habits, Server},
    tails::Tail,
};
use testbed::load::Random;

/// Sessions that write.
pub(super) const SESSIONS: usize = 5;
const KEYS: usize = 4;
/// The first id of a new cluster is higher; a small one is easier to read.
const FIRST_XID: u64 = 10;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// By the session of this number.
    Writer(usize, Act),
    /// A transaction that does not concern the outbox commits. If it writes nothing, its id is not durable.
    Elsewhere {
        writes: bool,
    },
    /// One statement of the relay.
    Read {
        limit: usize,
    },
    /// The brokers acknowledge a page.
    Publish,
    Save,
    /// The relay loses its process or its connection. `save_lands`: a save of which it never heard. `held`: pages that its client
    /// still holds, because it is only paused.
    LoseMemory {
        save_lands: bool,
        held: usize,
    },
    /// The client of a paused relay sends a record.
    ZombieSends,
    /// The server crashes; `xids` and `ids` draw where it goes on.
    CrashServer {
        xids: u64,
        ids: u64,
        still_published: usize,
    },
}

/// What a writer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    TakeXid,
    Lock(usize),
    Draw(usize),
    Append(usize),
    Savepoint,
    RollbackTo,
    Release,
    Prepare,
    Flush,
    Commit,
    Rollback,
}

/// What is run, apart from the steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) habits: Habits,
    pub(super) vices: Vices,
}

impl Default for Setting {
    /// Writers and server as the relay expects them, and our relay.
    fn default() -> Self {
        Self { habits: Habits { writers_lock: true, commits_are_durable: true }, vices: Vices::default() }
    }
}

/// The steps of a seed: 20 to 160, half of the time without any misfortune.
pub(super) fn steps(seed: u64) -> Vec<Step> {
    let mut random = Random::new(seed, 0);
    let (sessions, keys) = (2 + pick(&mut random, SESSIONS - 1), 1 + pick(&mut random, KEYS));
    let misfortunes = random.below(2) == 0;
    let length = 20 + pick(&mut random, 141);
    (0..length).map(|_| step(&mut random, sessions, keys, misfortunes)).collect()
}

fn step(random: &mut Random, sessions: usize, keys: usize, misfortunes: bool) -> Step {
    let (session, key) = (pick(random, sessions), pick(random, keys));
    let act = match random.below(100) {
        0..9 => Act::TakeXid,
        9..12 => Act::Lock(key),
        12..17 => Act::Draw(key),
        17..37 => Act::Append(key),
        37..41 => Act::Savepoint,
        41..44 => Act::RollbackTo,
        44..46 => Act::Release,
        46 => Act::Prepare,
        47..50 => Act::Flush,
        50..62 => Act::Commit,
        62..66 => Act::Rollback,
        66..69 => return Step::Elsewhere { writes: random.below(2) == 0 },
        69..84 => return Step::Read { limit: 1 + pick(random, 4) },
        84..91 => return Step::Publish,
        91..96 => return Step::Save,
        _ if !misfortunes => return Step::Read { limit: 2 },
        _ => return misfortune(random),
    };
    Step::Writer(session, act)
}

fn misfortune(random: &mut Random) -> Step {
    match random.below(10) {
        0..4 => Step::LoseMemory { save_lands: random.below(4) == 0, held: pick(random, 3) },
        4..7 => Step::ZombieSends,
        _ => Step::CrashServer {
            xids: random.below(1 << 20) as u64,
            ids: random.below(1 << 20) as u64,
            still_published: pick(random, 3),
        },
    }
}

fn pick(random: &mut Random, limit: usize) -> usize {
    random.below(limit)
}

/// Does what a writer wants, and says whether it could.
pub(super) fn act(server: &mut Server, session: usize, act: Act) -> bool {
    match act {
        Act::TakeXid => server.take_xid(session),
        Act::Lock(key) => server.lock(session, key),
        Act::Draw(key) => server.draw(session, key),
        Act::Append(key) => server.append(session, key).is_some(),
        Act::Savepoint => server.savepoint(session),
        Act::RollbackTo => server.rollback_to(session),
        Act::Release => server.release(session),
        Act::Prepare => server.prepare(session),
        Act::Flush => server.flush(session),
        Act::Commit => {
            server.commit(session);
            true
        }
        Act::Rollback => server.rollback(session),
    }
}

/// Runs the steps on an empty outbox, ends what is open, drains the rest, and says what went wrong. `observe` sees everything before
/// each step.
pub(super) fn run<T: Tail>(
    steps: &[Step],
    setting: Setting,
    mut observe: impl FnMut(&Server, &Relay<T>, Step),
) -> Findings {
    let mut server = Server::new(SESSIONS, FIRST_XID, setting.habits);
    let mut relay = Relay::<T>::new(setting.vices);
    for &step in steps {
        observe(&server, &relay, step);
        perform(&mut server, &mut relay, step);
    }
    for session in 0..SESSIONS {
        if session % 2 == 0 || !server.rollback(session) {
            server.commit(session);
        }
    }
    relay.finish(&mut server)
}

fn perform<T: Tail>(server: &mut Server, relay: &mut Relay<T>, step: Step) {
    match step {
        Step::Writer(session, what) => {
            act(server, session, what);
        }
        Step::Elsewhere { writes } => server.elsewhere(writes),
        Step::Read { limit } => relay.read(server, limit),
        Step::Publish => relay.publish(server),
        Step::Save => relay.save(server),
        Step::LoseMemory { save_lands, held } => {
            if save_lands {
                relay.save(server);
            }
            relay.lose_memory(server, held);
        }
        Step::ZombieSends => relay.zombie_sends(server),
        Step::CrashServer { xids, ids, still_published } => {
            let (next_xid, next_id) = after_crash(server, xids, ids);
            server.crash(next_xid, next_id);
            relay.lose_server(server, still_published);
        }
    }
}

/// Where the server goes on: unused ids may be handed out again, and the sequence may be up to 32 numbers ahead of what it gave.
pub(super) fn after_crash(server: &Server, xids: u64, ids: u64) -> (u64, i64) {
    let (lowest_xid, lowest_id) = server.lowest_after_crash();
    let next_xid = lowest_xid + xids % (server.next_xid() - lowest_xid + 1);
    let sequence_may_reach = server.next_id.max(lowest_id) + 33;
    let next_id = lowest_id + i64::try_from(ids).unwrap() % (sequence_may_reach - lowest_id);
    (next_xid, next_id)
}

/// Fewer steps that still fail: whatever can be left out is.
pub(super) fn shrink(mut steps: Vec<Step>, fails: impl Fn(&[Step]) -> bool) -> Vec<Step> {
    let mut size = steps.len();
    while size > 0 {
        let (mut start, before) = (0, steps.len());
        while start < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(start..(start + size).min(steps.len()));
            if fails(&fewer) {
                steps = fewer;
            } else {
                start += size;
            }
        }
        // One round more as long as single steps could be left out: one may have been needed by another that is gone.
        if size > 1 || steps.len() == before {
            size /= 2;
        }
    }
    steps
}
