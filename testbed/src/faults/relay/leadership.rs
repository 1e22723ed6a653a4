//! Who leads: asked of the server, handed over, and taken away.
//!
//! A relay that is to die at a point is started in the free seat, and leadership is handed to it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::rig::{END_LIMIT, LEAD_LIMIT, Rig, SEATS, Seat};

const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A session that asks for the leader lock, or holds it.
struct LockSession {
    seat: usize,
    pid: i32,
    leads: bool,
}

/// A relay with failpoints that was given the leadership.
pub(super) struct Armed {
    pub(super) seat: usize,
    /// The other one, which stands by.
    pub(super) standby: usize,
    /// When it was found dead, if it did not live to lead.
    pub(super) died_at: Option<Instant>,
}

impl Rig {
    /// The sessions with which relays ask for the leader lock, or hold it: asked of the server, so that a relay that stands still is
    /// known too. None if the server does not answer.
    async fn lock_sessions(&self) -> Option<Vec<LockSession>> {
        let sessions: Vec<(i32, i32, bool)> = sqlx::query_as(
            "SELECT a.pid, a.client_port,
                    EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.granted)
             FROM pg_stat_activity a
             WHERE a.usename = 'relay' AND a.datname = current_database() AND a.application_name = 'outbox-relay lock'",
        )
        .fetch_all(self.superuser())
        .await
        .ok()?;
        let seat_of = |port: i32| {
            let port = u16::try_from(port).ok()?;
            self.seats.iter().position(|seat| seat.database.owns(port))
        };
        let known = sessions
            .into_iter()
            .filter_map(|(pid, port, leads)| Some(LockSession { seat: seat_of(port)?, pid, leads }));
        Some(known.collect())
    }

    /// The session that holds the leader lock.
    async fn leading_session(&self) -> Option<LockSession> {
        self.lock_sessions().await?.into_iter().find(|session| session.leads)
    }

    /// Which seat leads. None if none does, or if the server does not answer.
    pub(super) async fn leader(&self) -> Option<usize> {
        self.leading_session().await.map(|session| session.seat)
    }

    /// Waits until one leads.
    pub(super) async fn leading(&self) -> Result<usize> {
        self.led(LEAD_LIMIT, |_| true).await
    }

    /// Waits until one leads, and not this one.
    pub(super) async fn other_leads(&self, than: usize, limit: Duration) -> Result<usize> {
        self.led(limit, |session| session.seat != than).await
    }

    /// Waits until the leader lock is held by another session than this one: of another relay, or of the same one, if that was quicker.
    pub(super) async fn led_anew(&self, than: i32, limit: Duration) -> Result<usize> {
        self.led(limit, |session| session.pid != than).await
    }

    async fn led(&self, limit: Duration, wanted: impl Fn(&LockSession) -> bool) -> Result<usize> {
        let begun = Instant::now();
        loop {
            match self.leading_session().await.filter(&wanted) {
                Some(session) => return Ok(session.seat),
                None => ensure!(begun.elapsed() < limit, "no relay leads after {limit:?}"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The server ends the session that holds the leader lock. Returns its pid.
    pub(super) async fn end_lock_session(&self) -> Result<i32> {
        let session = self.leading_session().await.context("no session holds the leader lock")?;
        let ended: bool = sqlx::query_scalar("SELECT pg_terminate_backend($1)")
            .bind(session.pid)
            .fetch_one(self.superuser())
            .await
            .context("end the session of the leader lock")?;
        ensure!(ended, "the session of the leader lock has ended by itself");
        Ok(session.pid)
    }

    /// Starts a relay with these failpoints in the free seat, and hands leadership to it: the leader is asked to end, while the
    /// standby stands still and so cannot be quicker.
    pub(super) async fn arm(&mut self, failpoints: &str) -> Result<Armed> {
        let leader = self.leading().await?;
        let free = self.seats.iter().position(|seat| !seat.relay.running()).context("no seat is free")?;
        let standby = (0..SEATS).find(|seat| *seat != leader && *seat != free).context("nobody stands by")?;
        self.seats[free].armed = true;
        let armed = &self.seats[free].relay;
        armed.start_with(&[("FAILPOINTS".to_owned(), failpoints.to_owned())])?;
        armed.wait_ready().await?;
        let paused = &self.seats[standby].relay;
        paused.pause()?;
        let handed_over = self.hand_over(leader, free).await;
        paused.resume()?;
        Ok(Armed { seat: free, standby, died_at: handed_over? })
    }

    async fn hand_over(&self, from: usize, to: usize) -> Result<Option<Instant>> {
        let status = self.seats[from].relay.terminate(END_LIMIT).await?;
        ensure!(
            status.success(),
            "{} was asked to end and did so with {status}",
            self.seats[from].relay.name()
        );
        let begun = Instant::now();
        loop {
            if !self.seats[to].relay.running() {
                return Ok(Some(Instant::now()));
            }
            if self.seats[to].relay.stopped() || self.leader().await == Some(to) {
                return Ok(None);
            }
            ensure!(begun.elapsed() < LEAD_LIMIT, "leadership was given up, and nobody took it");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether one relay leads and one stands by, for the server and in their own eyes: a leader that was replaced takes its time to
    /// find out. If it was fenced, it then ends; until it has, it answers like one that stands by, but it no longer asks for the lock.
    pub(super) async fn in_order(&self) -> bool {
        let Some(sessions) = self.lock_sessions().await else { return false };
        let (mut leading, mut standing_by) = (0, 0);
        for (seat, Seat { relay, .. }) in self.seats.iter().enumerate() {
            if !relay.running() {
                continue;
            }
            let mut own = sessions.iter().filter(|session| session.seat == seat).peekable();
            if own.peek().is_none() {
                return false;
            }
            let leads = own.any(|session| session.leads);
            // One that is just starting does not answer.
            match relay.metric("relay_leader").await.ok().flatten() {
                Some(1.0) if leads => leading += 1,
                Some(0.0) if !leads && relay.ready().await => standing_by += 1,
                _ => return false,
            }
        }
        (leading, standing_by) == (1, 1)
    }
}
