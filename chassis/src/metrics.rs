//! Metrics that are declared once: a field of a struct, whose doc comment is the help text.

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, core::Collector,
};

/// Declares a struct of metrics and its `register(&Registry)`. A field without a name is such a struct in its turn.
///
/// ```
/// chassis::metrics! {
///     /// What a bakery reports.
///     #[derive(Clone, Debug)]
///     pub struct Metrics {
///         /// Loaves that were baked.
///         pub loaves: prometheus::IntCounterVec = "loaves_total" by ["flour"],
///         /// From the dough to the shelf.
///         pub duration: prometheus::Histogram = "baking_duration_seconds" in &[60.0, 600.0, 3600.0],
///     }
/// }
///
/// let registry = prometheus::Registry::new();
/// let metrics = Metrics::register(&registry)?;
/// metrics.loaves.with_label_values(&["rye"]);
/// let rye = registry.gather().into_iter().find(|family| family.name() == "loaves_total").expect("rye");
/// assert_eq!(rye.help(), "Loaves that were baked.");
/// # anyhow::Ok(())
/// ```
#[macro_export]
macro_rules! metrics {
    (@make $registry:ident, $kind:ty, [$($help:literal),+]) => {
        <$kind>::register($registry)?
    };
    (@make $registry:ident, $kind:ty, [$($help:literal),+], $metric:literal, [$($label:literal),*], [$($buckets:expr)?]) => {
        $crate::metrics::registered::<$kind>($registry, &$crate::metrics::Declaration {
            name: $metric,
            help: concat!($($help),+),
            labels: &[$($label),*],
            buckets: [$($buckets as &'static [f64])?].first().copied(),
        })?
    };
    (
        $(#[$attribute:meta])*
        $visible:vis struct $name:ident {
            $(
                $(#[doc = $help:literal])+
                $seen:vis $field:ident: $kind:ty
                    $(= $metric:literal $(by [$($label:literal),+])? $(in $buckets:expr)?)?,
            )+
        }
    ) => {
        $(#[$attribute])*
        $visible struct $name {
            $(
                $(#[doc = $help])+
                $seen $field: $kind,
            )+
        }

        impl $name {
            /// Makes all of them and registers them.
            $visible fn register(registry: &::prometheus::Registry) -> ::anyhow::Result<Self> {
                Ok(Self {
                    $($field: $crate::metrics!(
                        @make registry, $kind, [$($help),+]
                        $(, $metric, [$($($label),+)?], [$($buckets)?])?
                    ),)+
                })
            }
        }
    };
}

/// What [`metrics!`](macro@crate::metrics) is told of one metric.
#[derive(Clone, Copy, Debug)]
pub struct Declaration {
    /// Its name.
    pub name: &'static str,
    /// The lines of its doc comment.
    pub help: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// Upper bounds, of a histogram.
    pub buckets: Option<&'static [f64]>,
}

impl Declaration {
    fn options(&self) -> Opts {
        Opts::new(self.name, self.help.trim())
    }

    fn histogram(&self) -> HistogramOpts {
        let options = HistogramOpts::new(self.name, self.help.trim());
        match self.buckets {
            Some(buckets) => options.buckets(buckets.to_vec()),
            None => options,
        }
    }
}

/// What can be declared.
pub trait Metric: Collector + Clone + 'static {
    /// Makes one.
    fn make(declaration: &Declaration) -> prometheus::Result<Self>;
}

/// Makes one and registers it.
pub fn registered<M: Metric>(registry: &Registry, declaration: &Declaration) -> anyhow::Result<M> {
    let metric = M::make(declaration)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

macro_rules! plain {
    ($($kind:ty),+) => {$(
        impl Metric for $kind {
            fn make(declaration: &Declaration) -> prometheus::Result<Self> {
                Self::with_opts(declaration.options())
            }
        }
    )+};
}

macro_rules! labelled {
    ($($kind:ty),+) => {$(
        impl Metric for $kind {
            fn make(declaration: &Declaration) -> prometheus::Result<Self> {
                Self::new(declaration.options(), declaration.labels)
            }
        }
    )+};
}

plain!(IntCounter, IntGauge, Gauge);
labelled!(IntCounterVec, IntGaugeVec);

impl Metric for Histogram {
    fn make(declaration: &Declaration) -> prometheus::Result<Self> {
        Self::with_opts(declaration.histogram())
    }
}

impl Metric for HistogramVec {
    fn make(declaration: &Declaration) -> prometheus::Result<Self> {
        Self::new(declaration.histogram(), declaration.labels)
    }
}

/// Now, as a gauge in seconds since 1970 has it.
pub fn timestamp_seconds() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}
