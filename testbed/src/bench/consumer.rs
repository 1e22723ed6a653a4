//! `testbed bench-consumer`: how many results one instance of the payment service applies, and how fast the whole circle is.
//!
//! ```text
//! parts of its own ─▶ warm up ─▶ results on the topic, some of them twice ─▶ raw consumer ─▶ one instance, until all is applied
//!                  ─▶ the whole circle at each rate: eventTime ─▶ commit ─▶ faster and faster, until a backlog grows ─▶ report
//! ```
//! Everything shares the machine. PostgreSQL keeps the time of every commit (`track_commit_timestamp`), so that a result's lag ends
//! with its commit and nowhere before. `docs/performance.md` says what each figure means.

mod apply;
pub(super) mod circle;
mod fill;
mod report;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::backlog::settle;
use super::say;
use super::site::Site;
use crate::stack::home::Home;
use apply::{Applied, Raw};
use circle::{Circle, Pace};
use fill::Fill;

pub use report::Report;

/// Where results come from.
const TOPIC: &str = "psp-result-updates";
const GROUP: &str = "payment-service";
/// One record in so many is a copy of one before.
const COPY_ONE_IN: u32 = 10;
/// Of the backlog, before anything counts.
const WARM_UP_PART: u32 = 10;
/// Payments per second at which lag is measured.
const RATES: [u32; 2] = [100, 500];
/// The steps towards the highest rate.
const STEP: f64 = 1.25;
const STEPS_MAX: usize = 8;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Bench {
    /// Results of a backlog.
    pub events: u32,
    /// How long at each rate.
    pub seconds: u32,
    /// How long a rate has to be kept up to be called sustained.
    pub sustained: u32,
}

/// Everything that was measured.
#[derive(Debug)]
struct Measured {
    raw: Raw,
    applied: Applied,
    paces: Vec<Pace>,
    /// The highest rate at which no backlog grew; None if there was none.
    highest: Option<f64>,
}

/// Measures on parts of its own, which end with it. None if `interrupt` came first.
pub async fn run(bench: &Bench, interrupt: impl Future<Output = ()>) -> Result<Option<Report>> {
    ensure!(bench.events >= 1_000, "fewer than 1000 results are no backlog");
    ensure!(bench.seconds > 0 && bench.sustained > 0, "too little to measure");
    let folder = Home::locate()?.private_folder("bench-consumer")?;
    let measured = tokio::select! {
        measured = Box::pin(measure(bench, &folder)) => measured.map(Some),
        () = interrupt => Ok(None),
    };
    // Logs that say what went wrong stay.
    let measured = measured.with_context(|| format!("the logs are in {}", folder.display()))?;
    fs::remove_dir_all(&folder).ok();
    Ok(measured.map(|measured| Report::new(&measured)))
}

async fn measure(bench: &Bench, folder: &Path) -> Result<Measured> {
    say("starting PostgreSQL, Kafka and the schema registry");
    let site = Site::start(&[("track_commit_timestamp", "on")], folder.to_path_buf()).await?;
    let payments = site.payments().await?;
    let mut fill = Fill::open(&site, &payments).await?;
    say("warming up");
    let service = site.payment_service(&payments)?;
    let warm_up = fill.tell(bench.events.div_ceil(WARM_UP_PART)).await?;
    apply::drain(&site, &service, &mut fill, warm_up).await.context("warm the instance up")?;
    say(&format!("{} results are put on the topic", bench.events));
    let told = fill.tell(bench.events).await?;
    settle(&mut fill.superuser).await?;
    let raw = apply::poll_only(&site, bench.events).await?;
    say(&format!("raw consumer: {:.0} records/s", raw.per_second()));
    let applied = apply::drain(&site, &service, &mut fill, told).await?;
    say(&format!("one instance: {:.0} results/s", applied.per_second()));

    let mut circle = Circle::start(&site, &payments, service).await?;
    let mut paces = Vec::new();
    for rate in RATES {
        settle(&mut fill.superuser).await?;
        let pace = circle.run(f64::from(rate), bench.seconds).await?;
        say(&format!("the circle at {rate}/s: {} payments", pace.payments));
        paces.push(pace);
    }
    let (mut highest, mut rate) = (None, f64::from(RATES[1]));
    for _ in 0..STEPS_MAX {
        settle(&mut fill.superuser).await?;
        let pace = circle.run(rate, bench.sustained).await?;
        say(&format!("{:.0}/s for {} s: {}", rate, bench.sustained, pace.described()));
        if !pace.sustained() {
            break;
        }
        highest = Some(pace.reached);
        rate *= STEP;
    }
    circle.end().await?;
    Ok(Measured { raw, applied, paces, highest })
}
