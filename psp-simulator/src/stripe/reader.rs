//! Takes parameters out of a form one by one, each checked as Stripe checks it.

use std::collections::BTreeMap;

use super::errors::Refusal;
use super::form::{Form, Node};
use super::objects::Expand;
use super::params::Confirmation;

/// A value, or the refusal that Stripe would give.
pub(crate) type Checked<T> = Result<T, Refusal>;

const MAX_METADATA_VALUE: usize = 500;
const MAX_METADATA_NAME: usize = 40;
const MAX_METADATA: usize = 50;
const MAX_TEXT: usize = 1000;
/// The parameters that are left.
pub(crate) struct Reader(Form);

impl Reader {
    pub(crate) fn new(form: Form, known: &[&str], not_simulated: &[&str]) -> Checked<Self> {
        let unknown: Vec<String> = form
            .keys()
            .filter(|name| !known.contains(&name.as_str()) && !not_simulated.contains(&name.as_str()))
            .cloned()
            .collect();
        if !unknown.is_empty() {
            return Err(Refusal::unknown_parameters(&unknown));
        }
        match form.keys().find(|name| not_simulated.contains(&name.as_str())) {
            Some(name) => Err(Refusal::not_simulated(name)),
            None => Ok(Self(form)),
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn raw_text(&mut self, name: &str) -> Checked<Option<String>> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Node::Text(text)) if text.len() <= MAX_TEXT => Ok(Some(text)),
            Some(Node::Text(_)) => {
                let message = format!("Invalid string: must be at most {MAX_TEXT} characters");
                Err(Refusal::invalid(None, message).about(name))
            }
            Some(Node::Map(_) | Node::List(_)) => Err(Refusal::invalid(None, "Invalid string").about(name)),
        }
    }

    /// An optional text; empty means unset.
    pub(crate) fn text(&mut self, name: &str) -> Checked<Option<Box<str>>> {
        Ok(self.raw_text(name)?.filter(|text| !text.is_empty()).map(Into::into))
    }

    /// An optional text that cannot be unset.
    pub(crate) fn filled_text(&mut self, name: &str) -> Checked<Option<String>> {
        match self.raw_text(name)? {
            Some(text) if text.is_empty() => Err(Refusal::empty(name)),
            text => Ok(text),
        }
    }

    pub(crate) fn required_text(&mut self, name: &str) -> Checked<String> {
        self.filled_text(name)?.ok_or_else(|| Refusal::missing(name))
    }

    pub(crate) fn integer(&mut self, name: &str) -> Checked<Option<i64>> {
        let Some(text) = self.filled_text(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            let message = format!("Invalid integer: {text}");
            Refusal::invalid(Some("parameter_invalid_integer"), message).about(name)
        })
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Checked<Option<bool>> {
        match self.filled_text(name)?.as_deref() {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(Refusal::invalid(None, format!("Invalid boolean: {other}")).about(name)),
        }
    }

    pub(crate) fn choice(&mut self, name: &str, choices: &[&'static str]) -> Checked<Option<&'static str>> {
        let Some(text) = self.filled_text(name)? else { return Ok(None) };
        let choice = choices.iter().find(|choice| **choice == text).ok_or_else(|| {
            let message = format!("Invalid {name}: must be one of {}", choices.join(", "));
            Refusal::invalid(None, message).about(name)
        })?;
        Ok(Some(choice))
    }

    /// A list of texts, as `name[]=` or `name[0]=`.
    pub(crate) fn texts(&mut self, name: &str) -> Checked<Vec<String>> {
        let nodes = match self.0.remove(name) {
            None => return Ok(Vec::new()),
            Some(Node::List(nodes)) => nodes,
            Some(Node::Map(map)) if map.keys().all(|index| index.bytes().all(|b| b.is_ascii_digit())) => {
                map.into_values().collect()
            }
            Some(Node::Map(_) | Node::Text(_)) => {
                return Err(Refusal::invalid(None, "Invalid array").about(name));
            }
        };
        let text = |node| match node {
            Node::Text(text) => Ok(text),
            Node::Map(_) | Node::List(_) => Err(Refusal::invalid(None, "Invalid string").about(name)),
        };
        nodes.into_iter().map(text).collect()
    }

    pub(crate) fn expand(&mut self, prefix: &str) -> Checked<Expand> {
        let mut expand = Expand::default();
        for path in self.texts("expand")? {
            match path.strip_prefix(prefix) {
                Some("latest_charge") => expand.latest_charge = true,
                Some("payment_method") => expand.payment_method = true,
                _ => {
                    let message = format!("This property cannot be expanded ({path}).");
                    return Err(Refusal::invalid(None, message).about("expand"));
                }
            }
        }
        Ok(expand)
    }

    pub(crate) fn confirmation(&mut self) -> Checked<Confirmation> {
        let off_session = match self.filled_text("off_session")?.as_deref() {
            None | Some("false") => false,
            Some("true" | "one_off" | "recurring") => true,
            Some(_) => return Err(Refusal::invalid(None, "Invalid off_session").about("off_session")),
        };
        Ok(Confirmation {
            off_session,
            error_on_requires_action: self.boolean("error_on_requires_action")?.unwrap_or(false),
            has_return_url: self.text("return_url")?.is_some(),
        })
    }

    /// None if the caller listed payment method types; enabled otherwise, as in Stripe's present API versions.
    pub(crate) fn automatic_payment_methods(&mut self, by_default: bool) -> Checked<Option<&'static str>> {
        const NAME: &str = "automatic_payment_methods";
        let map = match self.0.remove(NAME) {
            None => return Ok(by_default.then_some("always")),
            Some(Node::Map(map)) => map,
            Some(Node::Text(_) | Node::List(_)) => {
                return Err(Refusal::invalid(None, "Invalid object").about(NAME));
            }
        };
        let unknown: Vec<String> = map
            .keys()
            .filter(|key| !["enabled", "allow_redirects"].contains(&key.as_str()))
            .map(|key| format!("{NAME}[{key}]"))
            .collect();
        if !unknown.is_empty() {
            return Err(Refusal::unknown_parameters(&unknown));
        }
        let mut inner = Self(map);
        let enabled = inner
            .boolean("enabled")?
            .ok_or_else(|| Refusal::missing("automatic_payment_methods[enabled]"))?;
        let redirects = inner.choice("allow_redirects", &["always", "never"])?.unwrap_or("always");
        if enabled && !by_default {
            let message = "You may only specify one of these parameters: automatic_payment_methods, \
                           payment_method_types.";
            return Err(Refusal::invalid(None, message));
        }
        Ok(enabled.then_some(redirects))
    }

    pub(crate) fn metadata(&mut self) -> Checked<BTreeMap<Box<str>, Box<str>>> {
        let map = match self.0.remove("metadata") {
            None => return Ok(BTreeMap::new()),
            Some(Node::Text(text)) if text.is_empty() => return Ok(BTreeMap::new()),
            Some(Node::Map(map)) => map,
            Some(Node::Text(_) | Node::List(_)) => {
                return Err(Refusal::invalid(None, "Invalid object").about("metadata"));
            }
        };
        if map.len() > MAX_METADATA {
            let message = format!("Metadata can have at most {MAX_METADATA} keys.");
            return Err(Refusal::invalid(None, message).about("metadata"));
        }
        let mut metadata = BTreeMap::new();
        for (name, node) in map {
            let param = format!("metadata[{name}]");
            let Node::Text(value) = node else {
                return Err(Refusal::invalid(None, "Metadata values must be strings").about(param));
            };
            if name.chars().count() > MAX_METADATA_NAME || value.chars().count() > MAX_METADATA_VALUE {
                let message = format!(
                    "Metadata keys can have at most {MAX_METADATA_NAME} characters, values {MAX_METADATA_VALUE}."
                );
                return Err(Refusal::invalid(None, message).about(param));
            }
            if !value.is_empty() {
                metadata.insert(name.into(), value.into());
            }
        }
        Ok(metadata)
    }
}

/// Lower case, and one that Stripe knows.
pub(crate) fn currency(text: &str) -> Checked<String> {
    let currency = text.to_ascii_lowercase();
    if CURRENCIES.split(' ').any(|known| known == currency) {
        return Ok(currency);
    }
    let message = format!(
        "Invalid currency: {currency}. Stripe currently supports these currencies: {}",
        CURRENCIES.replace(' ', ", ")
    );
    Err(Refusal::invalid(None, message).about("currency"))
}

const CURRENCIES: &str = "usd aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bhd bif bmd bnd bob brl bsd bwp \
    byn bzd cad cdf chf clp cny cop crc cve czk djf dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gnf gtq gyd hkd hnl \
    htg huf idr ils inr isk jmd jod jpy kes kgs khr kmf krw kwd kyd kzt lak lbp lkr lrd lsl mad mdl mga mkd mmk mnt mop \
    mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd omr pab pen pgk php pkr pln pyg qar ron rsd rub rwf sar sbd scr sek \
    sgd shp sle sos srd std szl thb tjs tnd top try ttd twd tzs uah ugx uyu uzs vnd vuv wst xaf xcd xcg xof xpf yer zar \
    zmw";
