//! `testbed bench-api`: how long a client waits for a payment to be taken, while the whole circle turns.
//!
//! ```text
//! parts of its own ─▶ the whole circle, warm ─▶ posts by the clock alone ─▶ each with its answer ─▶ every payment has come round ─▶ report
//! ```
//! Open loop: a post is due by the clock, and its time counts from then, whether the client got to send it or not. A service that falls
//! behind is not spared the posts that come meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Client, StatusCode};
use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::consumer::circle::Circle;
use super::say;
use super::site::Site;
use crate::load::{Mixture, draw, schedule};
use crate::stack::home::Home;

/// Does not count: connections are opened, plans are made.
const WARM_UP: Duration = Duration::from_secs(5);
/// Posts without an answer at once. One that finds no room is an error.
const OPEN_MAX: usize = 4_096;
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Errors that are told one by one.
const ERRORS_SHOWN: usize = 5;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Bench {
    /// Posts per second.
    pub rate: u32,
    /// For so long.
    pub seconds: u32,
}

/// What came of it. Its fields are part of what `make bench-api` promises.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Posts per second that were due.
    pub rate: u32,
    /// For so long.
    pub seconds: u32,
    /// Posts that count.
    pub posts: usize,
    /// Of all posts, those that were not answered 201, by what they were answered.
    pub errors: BTreeMap<String, usize>,
    /// From when a post was due to its whole answer.
    pub p50_ms: f64,
    /// The same.
    pub p99_ms: f64,
    /// The same.
    pub max_ms: f64,
    /// Answered per second, by the clock.
    pub reached_per_s: f64,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let Self { rate, seconds, posts, errors, p50_ms, p99_ms, max_ms, reached_per_s } = self;
        let mut errors: Vec<String> = errors.iter().map(|(what, count)| format!("{count} {what}")).collect();
        if errors.is_empty() {
            errors.push("none".to_owned());
        }
        format!(
            "  posts                       {posts} at {rate}/s for {seconds} s, {reached_per_s:.0}/s answered\n  \
             due to answer, ms           p50 {p50_ms:.1}, p99 {p99_ms:.1}, max {max_ms:.1}\n  \
             errors                      {}",
            errors.join(", ")
        )
    }

    /// The last line.
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Measures on parts of its own, which end with it. None if `interrupt` came first.
pub async fn run(bench: Bench, interrupt: impl Future<Output = ()>) -> Result<Option<Report>> {
    ensure!(bench.rate > 0 && bench.seconds > 0, "too little to measure");
    let folder = Home::locate()?.private_folder("bench-api")?;
    let measured = tokio::select! {
        measured = Box::pin(measure(bench, &folder)) => measured.map(Some),
        () = interrupt => Ok(None),
    };
    // Logs that say what went wrong stay.
    let measured = measured.with_context(|| format!("the logs are in {}", folder.display()))?;
    fs::remove_dir_all(&folder).ok();
    Ok(measured)
}

async fn measure(bench: Bench, folder: &Path) -> Result<Report> {
    say("starting PostgreSQL, Kafka and the schema registry");
    let site = Site::start(&[("track_commit_timestamp", "on")], folder.to_path_buf()).await?;
    let payments = site.payments().await?;
    let service = site.payment_service(&payments)?;
    let mut circle = Circle::start(&site, &payments, service).await?;
    say(&format!("{} posts per second for {} s", bench.rate, bench.seconds));
    let (begun, (url, token)) = (OffsetDateTime::now_utc(), circle.api());
    let posts = post_all(bench, url, token).await?;
    circle.rest(begun).await?;
    circle.end().await?;
    Ok(report(bench, posts))
}

/// One post: whether it counts, from due to answer, and what was wrong.
type Post = (bool, Duration, Option<String>);

async fn post_all(bench: Bench, url: &str, token: &str) -> Result<(Vec<Post>, Duration)> {
    let client = Client::builder().no_proxy().timeout(ANSWER_LIMIT).pool_max_idle_per_host(512).build()?;
    let lasts = WARM_UP + Duration::from_secs(bench.seconds.into());
    let room = Arc::new(Semaphore::new(OPEN_MAX));
    let (begun, mut asking, mut posts) = (Instant::now(), JoinSet::new(), Vec::new());
    // No other run has drawn the same keys.
    let seed = u64::from(u32::MAX);
    for (number, due) in schedule(bench.rate.into()).take_while(|due| *due < lasts).enumerate() {
        tokio::time::sleep_until(begun + due).await;
        let counts = due >= WARM_UP;
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            posts.push((counts, Duration::ZERO, Some("found no room".to_owned())));
            continue;
        };
        let wish = draw(seed, number, &Mixture::Plain);
        let body = json!({"amount_minor": wish.amount_minor, "currency": wish.currency, "psp": wish.psp,
            "payment_method": "pm_card_visa", "merchant_reference": wish.merchant_reference});
        let request = client.post(format!("{url}/v1/payments")).bearer_auth(token);
        let request = request.header("Idempotency-Key", wish.key).json(&body);
        asking.spawn(async move {
            let wrong = ask(request).await.err();
            drop(permit);
            (counts, (begun + due).elapsed(), wrong)
        });
        while let Some(answered) = asking.try_join_next() {
            posts.push(answered.context("send a post")?);
        }
    }
    while let Some(answered) = asking.join_next().await {
        posts.push(answered.context("send a post")?);
    }
    Ok((posts, begun.elapsed().saturating_sub(WARM_UP)))
}

async fn ask(request: reqwest::RequestBuilder) -> Result<(), String> {
    let response = request.send().await.map_err(|error| format!("not answered: {error}"))?;
    let status = response.status();
    response.bytes().await.map_err(|error| format!("answered in part: {error}"))?;
    if status == StatusCode::CREATED { Ok(()) } else { Err(status.to_string()) }
}

#[expect(clippy::cast_precision_loss, reason = "posts of one run")]
fn report(bench: Bench, (posts, took): (Vec<Post>, Duration)) -> Report {
    let mut errors = BTreeMap::new();
    for wrong in posts.iter().filter_map(|(_, _, wrong)| wrong.clone()) {
        // Each text names a port: beyond a few they are counted together.
        let what = if errors.len() < ERRORS_SHOWN || errors.contains_key(&wrong) {
            wrong
        } else {
            "others".to_owned()
        };
        *errors.entry(what).or_default() += 1;
    }
    let mut times: Vec<Duration> =
        posts.iter().filter(|(counts, ..)| *counts).map(|(_, time, _)| *time).collect();
    times.sort_unstable();
    let share = |percent: usize| times.get((times.len() * percent).div_ceil(100).saturating_sub(1));
    let ms =
        |time: Option<&Duration>| time.map_or(0.0, |time| (time.as_secs_f64() * 10_000.0).round() / 10.0);
    let answered = posts.iter().filter(|(counts, _, wrong)| *counts && wrong.is_none()).count();
    Report {
        rate: bench.rate,
        seconds: bench.seconds,
        posts: times.len(),
        errors,
        p50_ms: ms(share(50)),
        p99_ms: ms(share(99)),
        max_ms: ms(times.last()),
        reached_per_s: (answered as f64 / took.as_secs_f64().max(bench.seconds.into()) * 10.0).round() / 10.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_count_is_in_no_time_but_its_errors_are_told() {
        let bench = Bench { rate: 100, seconds: 1 };
        let ms = Duration::from_millis;
        let mut posts: Vec<Post> = (1..=100).map(|n| (true, ms(n), None)).collect();
        posts.push((false, ms(9_000), Some("503".to_owned())));
        posts.push((true, ms(200), Some("503".to_owned())));
        let told = report(bench, (posts, Duration::from_secs(2)));
        assert_eq!((told.posts, told.p50_ms, told.p99_ms, told.max_ms), (101, 51.0, 100.0, 200.0));
        assert_eq!(told.errors, BTreeMap::from([("503".to_owned(), 2)]));
        assert!((told.reached_per_s - 50.0).abs() < 0.1, "{told:?}");
    }
}
