//! The way to one PSP: how many calls at once, how often one is tried, and when the PSP is left alone.
//!
//! ```text
//! claim ─▶ room? ─▶ circuit closed? ─▶ orders of this PSP ─▶ call ─▶ no answer worth having ─▶ a pause, the same again (3 in all)
//!            │              │                                   └──▶ an answer
//!            └── wait       └── wait: its orders stay where they are
//! ```
//! Each PSP has a lane of its own, from the claim on: with room for so many orders, and a circuit breaker. A PSP that stalls fills its own
//! lane and nobody else's; its orders wait in the database, not in this process.
//!
//! Further tries carry the same idempotency key, and end with the time that the attempt has. The PSP's own word on whether to try again
//! counts more than ours. If an earlier try may have been executed, the answer says so, whatever the last one said.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use chassis::{
    backoff::Backoff,
    shutdown::Shutdown,
    telemetry::TraceContext,
    trace::{Span, SpanKind},
};

use crate::{
    breaker::{Admission, Breaker, State},
    clock::Clock,
    config::{Config, LEASE_MARGIN},
    course::{self, Known},
    metrics::Metrics,
    psp::{Answer, Call, Order, Psp, Psps, Verdict, code},
};

/// Most tries of one call.
const TRIES_MAX: u32 = 3;
/// First and longest pause between two tries.
const AGAIN_FIRST: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(5);
/// No try begins with less time than this: cut short, it would put in doubt what was clear before.
const TRY_MIN: Duration = Duration::from_secs(1);

/// The way to one PSP. Shared by those who carry out its orders and those who ask about them.
#[derive(Debug)]
pub struct Lane {
    /// The adapter.
    pub psp: Arc<dyn Psp>,
    breaker: Mutex<Breaker>,
    metrics: Metrics,
    shutdown: Shutdown,
    clock: Clock,
}

/// One lane per PSP, by its name.
pub type Lanes = HashMap<&'static str, Arc<Lane>>;

impl Lane {
    /// A lane for each PSP.
    pub fn all(config: &Config, psps: &Psps, metrics: &Metrics, shutdown: &Shutdown) -> Lanes {
        // A probe is over when its claim is.
        let (pause, probe) = (config.breaker_pause, config.psp_timeout + LEASE_MARGIN);
        let lane = |psp: &Arc<dyn Psp>| Self {
            psp: Arc::clone(psp),
            breaker: Mutex::new(Breaker::new(pause, probe)),
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
            clock: config.clock.clone(),
        };
        psps.iter().map(|psp| (psp.name(), Arc::new(lane(psp)))).collect()
    }

    /// Of so many orders, how many may be taken up now; None if the end came while none could be.
    pub async fn admitted(&self, room: usize) -> Option<usize> {
        loop {
            match self.with_breaker(Breaker::admits) {
                Admission::All => return Some(room),
                Admission::One => return Some(room.min(1)),
                Admission::NotBefore(until) => {
                    if !self.shutdown.sleep(until.saturating_duration_since(Instant::now())).await {
                        return None;
                    }
                }
            }
        }
    }

    /// Nothing was taken up that the PSP is called for, although it could have been.
    pub fn found_nothing(&self) {
        self.with_breaker(Breaker::found_no_probe);
    }

    /// True while the PSP is left alone.
    pub fn is_open(&self) -> bool {
        self.with_breaker(|breaker, _| breaker.state()) == State::Open
    }

    /// Calls the PSP, at most three times, until `deadline`, and not at all once it is too late for what is `known` of the order.
    pub async fn call(
        &self,
        call: &Call,
        order: &Order,
        known: Known,
        deadline: Instant,
        within: Option<TraceContext>,
    ) -> Answer {
        let mut backoff = Backoff::new(AGAIN_FIRST, AGAIN_MAX);
        let (mut tries, mut doubtful) = (0, None);
        loop {
            if !self.may_begin(call, known, doubtful.is_some()) {
                self.found_nothing();
                let late = Answer::new(Verdict::Later).error(code::EXPIRED, "too late to be sent");
                return conclude(late, doubtful);
            }
            let mut span = self.step(call, order, within, tries);
            let answer = self.try_once(call, order, deadline).await;
            answered(&mut span, &answer);
            drop(span);
            tries += 1;
            let pause = backoff.next_delay();
            let again = tries < TRIES_MAX
                && answer.is_worth_another_try()
                && Instant::now() + pause + TRY_MIN < deadline
                && !self.is_open();
            if !again || !self.shutdown.sleep(pause).await {
                return conclude(answer, doubtful);
            }
            self.metrics.psp_retries.with_label_values(&[self.psp.label(), call.operation.label()]).inc();
            if may_have_been_executed(&answer) {
                doubtful.get_or_insert(answer);
            }
        }
    }

    fn may_begin(&self, call: &Call, known: Known, doubtful: bool) -> bool {
        let known = Known { in_doubt: known.in_doubt || doubtful, ..known };
        course::may_begin(call.operation, known, self.psp.capabilities(), self.clock.now())
    }

    /// The step of one try, by OpenTelemetry's conventions for HTTP. Neither a key nor anything of a body is in it.
    fn step(&self, call: &Call, order: &Order, within: Option<TraceContext>, tries: u32) -> Span {
        let Some(within) = within else { return Span::none() };
        let operation = call.operation.label();
        let mut span = Span::start(
            SpanKind::Client,
            format!("{} {}/{operation}", call.method, self.psp.label()),
            Some(within),
        );
        if span.is_recording() {
            span.set("http.request.method", call.method);
            if let Some(url) = self.psp.base_url().and_then(|base_url| reqwest::Url::parse(base_url).ok()) {
                span.set_if("server.address", url.host_str().map(str::to_owned));
                span.set_if("server.port", url.port_or_known_default().map(i64::from));
            }
            span.set_if("url.full", self.psp.base_url().map(|base_url| format!("{base_url}{}", call.path)));
            if tries > 0 {
                span.set("http.request.resend_count", i64::from(tries));
            }
            span.set("psp", self.psp.name());
            span.set("psp.operation", operation);
            span.set("payment_order_id", order.payment_order_id.to_string());
        }
        span
    }

    async fn try_once(&self, call: &Call, order: &Order, deadline: Instant) -> Answer {
        let begun = Instant::now();
        let within = deadline.saturating_duration_since(begun);
        let answer = match tokio::time::timeout(within, self.psp.send(call, order)).await {
            Ok(answer) => answer.keepable(),
            Err(_) => Answer { took: begun.elapsed(), ..Answer::new(Verdict::Unclear) }
                .error(code::PSP_TIMEOUT, "no answer within the limit"),
        };
        let labels = [self.psp.label(), call.operation.label(), answer.label()];
        self.metrics.psp_requests.with_label_values(&labels).inc();
        self.metrics.psp_request_duration.with_label_values(&labels[..2]).observe(answer.took.as_secs_f64());
        if let Some(kind) = answer.decline {
            self.metrics.psp_declines.with_label_values(&[self.psp.label(), kind.label()]).inc();
        }
        let failed = answer.is_technical_failure();
        if self.with_breaker(|breaker, now| breaker.observe(now, failed)) {
            self.metrics.psp_circuit_opened.with_label_values(&[self.psp.label()]).inc();
            tracing::warn!(
                psp = self.psp.name(),
                error_code = answer.error_code,
                http_status = answer.http_status,
                "most of the last calls failed: this PSP is left alone for a while, and its orders wait"
            );
        }
        answer
    }

    /// The breaker, and its state in the metrics afterwards. Nothing in it can leave it half changed.
    fn with_breaker<T>(&self, use_it: impl FnOnce(&mut Breaker, Instant) -> T) -> T {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, result) = (breaker.state(), use_it(&mut breaker, Instant::now()));
        let after = breaker.state();
        if before != after {
            self.metrics.psp_circuit_state.with_label_values(&[self.psp.label()]).set(after.gauge());
            if after == State::Closed {
                tracing::info!(psp = self.psp.name(), "the PSP answers again");
            }
        }
        result
    }
}

/// What a try was answered. A decline is an answer like any other.
fn answered(span: &mut Span, answer: &Answer) {
    if !span.is_recording() {
        return;
    }
    span.set_if("http.response.status_code", answer.http_status.map(i64::from));
    span.set("psp.verdict", answer.verdict.as_str());
    span.set_if("psp_reference", answer.reference.clone());
    span.set_if("psp.request_id", answer.request_id.clone());
    match answer.http_status {
        Some(status) if status >= 500 || matches!(status, 401 | 403 | 429) => span.fail(&status.to_string()),
        None => span.fail(answer.error_code.as_deref().unwrap_or(code::PSP_CONNECTION_LOST)),
        Some(_) => {}
    }
}

/// The last answer, unless it only says that this try was not executed, and an earlier one may have been.
fn conclude(last: Answer, doubtful: Option<Answer>) -> Answer {
    match doubtful {
        None => last,
        Some(earlier) if last.verdict == Verdict::Later => Answer { in_doubt: true, ..earlier },
        Some(_) => Answer { in_doubt: true, ..last },
    }
}

/// What was turned away was not executed.
fn may_have_been_executed(answer: &Answer) -> bool {
    answer.verdict != Verdict::Later
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures::future::BoxFuture;
    use time::OffsetDateTime;

    use super::*;
    use crate::psp::{Capabilities, Operation, Unsendable, currency::Currencies, stripe};

    /// Answers as it was told, then not at all.
    #[derive(Debug)]
    struct Scripted(Mutex<VecDeque<Answer>>);

    impl Psp for Scripted {
        fn name(&self) -> &'static str {
            "SCRIPTED"
        }

        fn label(&self) -> &'static str {
            "scripted"
        }

        fn capabilities(&self) -> Capabilities {
            Capabilities { two_step: false, looks_up: false, remembers_keys_for: Duration::from_secs(1) }
        }

        fn currencies(&self) -> &'static Currencies {
            &stripe::CURRENCIES
        }

        fn prepare(&self, operation: Operation, _: &Order, _: Option<&str>) -> Result<Call, Unsendable> {
            let idempotency_key = Some("key".to_owned());
            Ok(Call { operation, method: "POST", path: "/".into(), body: String::new(), idempotency_key })
        }

        fn send<'a>(&'a self, _: &'a Call, _: &'a Order) -> BoxFuture<'a, Answer> {
            let next = self.0.lock().unwrap().pop_front();
            Box::pin(async move {
                match next {
                    Some(answer) => answer,
                    None => std::future::pending().await,
                }
            })
        }
    }

    fn answer(verdict: Verdict, http_status: u16) -> Answer {
        Answer { http_status: Some(http_status), ..Answer::new(verdict) }
    }

    fn lane(answers: impl IntoIterator<Item = Answer>) -> (Arc<Lane>, Metrics) {
        let psp = Arc::new(Scripted(Mutex::new(answers.into_iter().collect())));
        let psps = Psps::new([psp as Arc<dyn Psp>]);
        let metrics = Metrics::new(&prometheus::Registry::new(), &psps).unwrap();
        let shutdown = Shutdown::new();
        let (pause, probe) = (Duration::from_secs(5), Duration::from_secs(9));
        let psp = Arc::clone(psps.get("SCRIPTED").unwrap());
        let breaker = Mutex::new(Breaker::new(pause, probe));
        let clock = Clock::default();
        (Arc::new(Lane { psp, breaker, metrics: metrics.clone(), shutdown, clock }), metrics)
    }

    fn order() -> Order {
        Order::sample("SCRIPTED")
    }

    async fn call(lane: &Lane, within: Duration) -> Answer {
        let known = Known {
            has_reference: false,
            first_attempt_at: None,
            in_doubt: false,
            expires_at: OffsetDateTime::now_utc() + Duration::from_hours(1),
        };
        call_for(lane, known, within).await
    }

    async fn call_for(lane: &Lane, known: Known, within: Duration) -> Answer {
        let call = lane.psp.prepare(Operation::Confirm, &order(), None).unwrap();
        lane.call(&call, &order(), known, Instant::now() + within, None).await
    }

    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn what_was_turned_away_is_tried_three_times_and_an_answer_ends_it() {
        let busy = || answer(Verdict::Later, 429);
        let (lane, metrics) = lane([busy(), busy(), answer(Verdict::Succeeded, 200), busy()]);
        let found = call(&lane, LONG).await;
        assert_eq!((found.verdict, found.in_doubt), (Verdict::Succeeded, false));
        let retries = metrics.psp_retries.with_label_values(&["scripted", "confirm"]);
        assert_eq!(retries.get(), 2);
        let (lane, _) = self::lane([busy(), busy(), busy(), answer(Verdict::Succeeded, 200)]);
        assert_eq!(call(&lane, LONG).await.verdict, Verdict::Later);
    }

    #[tokio::test]
    async fn an_earlier_try_that_may_have_been_executed_is_not_forgotten() {
        let broken = || answer(Verdict::Unclear, 500).error(code::PSP_ERROR, "first");
        for (last, verdict) in [
            (answer(Verdict::Later, 429), Verdict::Unclear),
            (answer(Verdict::Refused, 422), Verdict::Refused),
            (answer(Verdict::Succeeded, 200), Verdict::Succeeded),
        ] {
            let (lane, _) = lane([broken(), Answer { try_again: Some(false), ..last }]);
            let found = call(&lane, LONG).await;
            assert_eq!((found.verdict, found.in_doubt), (verdict, true));
        }
    }

    #[tokio::test]
    async fn a_reference_that_cannot_be_kept_does_not_spoil_the_answer() {
        let odd = Answer { reference: Some("pi_\0".into()), ..answer(Verdict::Succeeded, 200) };
        let (lane, _) = lane([odd]);
        let found = call(&lane, LONG).await;
        assert_eq!((found.verdict, found.reference), (Verdict::Succeeded, None));
    }

    #[tokio::test]
    async fn the_psps_word_on_trying_again_counts_most() {
        let refusing = Answer { try_again: Some(false), ..answer(Verdict::Unclear, 500) };
        let (lane, _) = lane([refusing, answer(Verdict::Succeeded, 200)]);
        assert_eq!(call(&lane, LONG).await.verdict, Verdict::Unclear);
        let asking = Answer { try_again: Some(true), ..answer(Verdict::Unclear, 422) };
        let (lane, _) = self::lane([asking, answer(Verdict::Succeeded, 200)]);
        assert_eq!(call(&lane, LONG).await.verdict, Verdict::Succeeded);
    }

    #[tokio::test]
    async fn no_try_outlasts_the_time_of_the_attempt() {
        let (lane, _) = lane([]);
        let found = call(&lane, Duration::from_millis(50)).await;
        assert_eq!((found.verdict, found.error_code.as_deref()), (Verdict::Unclear, Some(code::PSP_TIMEOUT)));
        // There is no time for a pause and another try.
        let (lane, metrics) = self::lane([answer(Verdict::Later, 429), answer(Verdict::Succeeded, 200)]);
        assert_eq!(call(&lane, Duration::from_millis(200)).await.verdict, Verdict::Later);
        assert_eq!(metrics.psp_retries.with_label_values(&["scripted", "confirm"]).get(), 0);
    }

    #[tokio::test]
    async fn no_try_that_could_be_the_first_to_charge_begins_too_late() {
        let busy = || answer(Verdict::Later, 429);
        let known = |in_doubt| Known {
            has_reference: false,
            first_attempt_at: Some(OffsetDateTime::now_utc()),
            in_doubt,
            expires_at: OffsetDateTime::now_utc() + Duration::from_hours(1),
        };
        // It expires during the pause after the first try.
        let during = async |answers: Vec<Answer>, in_doubt| {
            let (lane, _) = lane(answers);
            let clock = lane.clock.clone();
            let (found, ()) = tokio::join!(call_for(&lane, known(in_doubt), LONG), async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                clock.advance(Duration::from_hours(2));
            });
            (found.verdict, found.error_code, found.in_doubt)
        };
        let paid = || answer(Verdict::Succeeded, 200);
        let late = (Verdict::Later, Some(code::EXPIRED.to_owned()), false);
        assert_eq!(during(vec![busy(), paid()], false).await, late);
        // What may have been executed is asked for all the same.
        let broken = answer(Verdict::Unclear, 500);
        assert_eq!(during(vec![broken, paid()], false).await, (Verdict::Succeeded, None, true));
        assert_eq!(during(vec![busy(), paid()], true).await, (Verdict::Succeeded, None, false));
        // It expired between the claim and the call.
        let (lane, _) = lane([paid()]);
        lane.clock.advance(Duration::from_hours(2));
        assert_eq!(call_for(&lane, known(false), LONG).await.verdict, Verdict::Later);
        assert_eq!(call_for(&lane, known(true), LONG).await.verdict, Verdict::Succeeded);
    }

    #[tokio::test]
    async fn a_sick_psp_is_left_alone_and_declines_are_no_sickness() {
        let (lane, metrics) = lane((0..64).map(|_| answer(Verdict::Declined, 402)));
        for _ in 0..64 {
            call(&lane, LONG).await;
        }
        assert_eq!(lane.admitted(7).await, Some(7));
        let state = |metrics: &Metrics| metrics.psp_circuit_state.with_label_values(&["scripted"]).get();
        assert_eq!(state(&metrics), 0);

        let (lane, metrics) = self::lane((0..64).map(|_| answer(Verdict::Unclear, 503)));
        let mut calls = 0;
        while !lane.is_open() {
            call(&lane, Duration::from_millis(50)).await;
            calls += 1;
            assert!(calls < 64);
        }
        assert_eq!(state(&metrics), 2);
        assert_eq!(metrics.psp_circuit_opened.with_label_values(&["scripted"]).get(), 1);
        // Whoever asks for room waits, until the end.
        let waiting = tokio::spawn({
            let lane = Arc::clone(&lane);
            async move { lane.admitted(7).await }
        });
        lane.shutdown.request();
        assert_eq!(waiting.await.unwrap(), None);
    }
}
