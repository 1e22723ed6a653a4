//! Writes Avro: goes through a plan and a text side by side.

use std::{borrow::Cow, str::FromStr};

use uuid::Uuid;

use super::{
    json::{Json, Kind, Malformed},
    moment::Moment,
    plan::{Node, NodeId, Plan, Record, Union, UuidForm},
};

/// Arrays and objects within each other. PostgreSQL stores thousands; readers of Avro need a stack for them too.
const DEPTH_MAX: u32 = 128;
/// Where several branches of a union could fit, they are tried one after the other, and unions within unions multiply. So many times
/// the text may be read again, and so many bytes whatever its size, before that is given up.
const REREAD_MAX: usize = 64;
const REREAD_BYTES_MIN: usize = 1 << 20;
/// Records of so many fields need no allocation.
const FIELDS_ON_STACK: usize = 16;
/// Longest piece of a payload in a reason.
const QUOTED_MAX_CHARS: usize = 100;

type Written = Result<(), Misfit>;

/// Why a value does not fit. In a box, as every result has room for one.
#[derive(Debug)]
pub(super) struct Misfit(Box<Details>);

#[derive(Debug)]
struct Details {
    /// Gathered from the inside out.
    path: Vec<String>,
    reason: String,
    /// No other branch of a union can help.
    hopeless: bool,
}

impl Misfit {
    #[cold]
    fn new(reason: impl Into<String>) -> Self {
        Self(Box::new(Details { path: Vec::new(), reason: reason.into(), hopeless: false }))
    }

    #[cold]
    fn hopeless(reason: impl Into<String>) -> Self {
        Self(Box::new(Details { path: Vec::new(), reason: reason.into(), hopeless: true }))
    }

    #[cold]
    fn within(mut self, step: String) -> Self {
        self.0.path.push(step);
        self
    }

    #[cold]
    fn within_key(self, key: &str) -> Self {
        self.within(format!(".{}", quoted(key)))
    }

    /// From the outside in: `.field`, `[3]`.
    pub(super) fn path(&self) -> String {
        self.0.path.iter().rev().map(String::as_str).collect()
    }

    pub(super) fn reason(&self) -> &str {
        &self.0.reason
    }
}

impl From<Malformed> for Misfit {
    fn from(malformed: Malformed) -> Self {
        Self::hopeless(format!("not JSON at byte {}: {}", malformed.at, malformed.reason))
    }
}

/// What a reason or a path shows of a text.
fn quoted(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(QUOTED_MAX_CHARS) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// Appends what `text` is by `plan`. What was appended before a misfit stays: the caller cuts it off.
pub(super) fn payload(plan: &Plan, text: &str, out: &mut Vec<u8>) -> Written {
    let mut writer = Writer::new(plan, text);
    writer.value(plan.root(), out)?;
    Ok(writer.json.end()?)
}

/// Appends a default of the schema.
pub(super) fn default(plan: &Plan, node: NodeId, text: &str, out: &mut Vec<u8>) -> Written {
    Writer { in_default: true, ..Writer::new(plan, text) }.value(node, out)
}

/// Appends a count or a place.
pub(super) fn length(length: usize, out: &mut Vec<u8>) {
    varint((length as u64) << 1, out);
}

fn long(long: i64, out: &mut Vec<u8>) {
    varint(((long << 1) ^ (long >> 63)).cast_unsigned(), out);
}

fn varint(mut rest: u64, out: &mut Vec<u8>) {
    while rest >= 0x80 {
        out.push(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    out.push(rest.to_le_bytes()[0]);
}

fn string(text: &str, out: &mut Vec<u8>) {
    length(text.len(), out);
    out.extend_from_slice(text.as_bytes());
}

/// Ends a block of items that starts with one byte for their count.
fn end_of_block(start: usize, count: usize, out: &mut Vec<u8>) {
    if count == 0 {
        // That byte, 0, is all.
        return;
    }
    match u8::try_from(count << 1) {
        Ok(byte) if byte < 0x80 => out[start] = byte,
        _ => {
            let mut bytes = Vec::new();
            length(count, &mut bytes);
            out.splice(start..=start, bytes);
        }
    }
    out.push(0);
}

/// Where the bytes of a field begin and end.
type Span = (usize, usize);
const ABSENT: Span = (usize::MAX, usize::MAX);

struct Writer<'a> {
    plan: &'a Plan,
    json: Json<'a>,
    depth: u32,
    reread: usize,
    reread_max: usize,
    /// Not a payload but a default of the schema, which has dates and times as numbers.
    in_default: bool,
}

impl<'a> Writer<'a> {
    fn new(plan: &'a Plan, text: &'a str) -> Self {
        let reread_max = text.len().saturating_mul(REREAD_MAX).max(REREAD_BYTES_MIN);
        Self { plan, json: Json::new(text), depth: 0, reread: 0, reread_max, in_default: false }
    }

    fn value(&mut self, node: NodeId, out: &mut Vec<u8>) -> Written {
        let kind = self.json.kind()?;
        self.value_of(kind, node, out)
    }

    fn value_of(&mut self, kind: Kind, id: NodeId, out: &mut Vec<u8>) -> Written {
        let plan = self.plan;
        match (plan.node(id), kind) {
            (Node::Null, Kind::Null) => self.json.null()?,
            (Node::Boolean, Kind::Boolean) => out.push(u8::from(self.json.boolean()?)),
            (Node::Int, Kind::Number) => long(self.integer::<i32>(32)?, out),
            (Node::Long, Kind::Number) => long(self.integer::<i64>(64)?, out),
            (Node::Float, Kind::Number) => {
                out.extend_from_slice(&self.decimal(f32::is_finite)?.to_le_bytes());
            }
            (Node::Double, Kind::Number) => {
                out.extend_from_slice(&self.decimal(f64::is_finite)?.to_le_bytes());
            }
            (Node::String, Kind::String) => string(&self.text()?, out),
            (Node::Uuid(form), Kind::String) => self.uuid(*form, out)?,
            (Node::Moment(moment), Kind::String) => self.moment(*moment, out)?,
            (Node::Moment(moment), Kind::Number) if self.in_default => {
                let number =
                    if moment.is_int() { self.integer::<i32>(32)? } else { self.integer::<i64>(64)? };
                long(number, out);
            }
            (Node::Enum(symbols), Kind::String) => {
                let text = self.text()?;
                let place = symbols.place(&text);
                length(
                    place.ok_or_else(|| Misfit::new(format!("{:?} is not a symbol", quoted(&text))))?,
                    out,
                );
            }
            (Node::Array(items), Kind::Array) => self.array(*items, out)?,
            (Node::Map(values), Kind::Object) => self.map(*values, out)?,
            (Node::Record(record), Kind::Object) => self.record(record, out)?,
            (Node::Union(union), _) => self.union(union, kind, out)?,
            _ => return Err(self.unexpected(kind, id)),
        }
        Ok(())
    }

    #[cold]
    fn unexpected(&self, kind: Kind, id: NodeId) -> Misfit {
        Misfit::new(format!("expected {}, found {}", self.plan.expected(id), kind.name()))
    }

    /// As written, so that 1.0 is no integer: a whole number is written whole.
    fn integer<T: FromStr + Into<i64>>(&mut self, bits: u32) -> Result<i64, Misfit> {
        let number = self.json.number()?;
        let parsed = if number.integer { number.text.parse::<T>().ok() } else { None };
        parsed
            .map(Into::into)
            .ok_or_else(|| Misfit::new(format!("{} is not a {bits}-bit integer", quoted(number.text))))
    }

    /// The nearest number that can be written. Infinity is none: JSON cannot mean it.
    fn decimal<T: FromStr + Copy>(&mut self, finite: impl Fn(T) -> bool) -> Result<T, Misfit> {
        let text = self.json.number()?.text;
        let parsed = text.parse::<T>().ok().filter(|number| finite(*number));
        parsed.ok_or_else(|| Misfit::new(format!("{} is out of range", quoted(text))))
    }

    fn text(&mut self) -> Result<Cow<'a, str>, Misfit> {
        Ok(self.json.string()?.unescaped()?)
    }

    fn uuid(&mut self, form: UuidForm, out: &mut Vec<u8>) -> Written {
        let text = self.text()?;
        let uuid =
            Uuid::try_parse(&text).map_err(|_| Misfit::new(format!("{:?} is not a uuid", quoted(&text))))?;
        match form {
            UuidForm::String => string(uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()), out),
            UuidForm::Bytes => {
                length(uuid.as_bytes().len(), out);
                out.extend_from_slice(uuid.as_bytes());
            }
            UuidForm::Fixed => out.extend_from_slice(uuid.as_bytes()),
        }
        Ok(())
    }

    fn moment(&mut self, moment: Moment, out: &mut Vec<u8>) -> Written {
        let text = self.text()?;
        let number = match moment.parse(&text) {
            Ok(Some(number)) => number,
            Ok(None) => return Err(Misfit::new(format!("{} is out of range", quoted(&text)))),
            Err(_) => return Err(Misfit::new(format!("{:?} is not {}", quoted(&text), moment.name()))),
        };
        long(number, out);
        Ok(())
    }

    fn deeper(&mut self) -> Written {
        self.json.open();
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Misfit::hopeless(format!(
                "more than {DEPTH_MAX} arrays and objects within each other"
            )));
        }
        Ok(())
    }

    fn array(&mut self, items: NodeId, out: &mut Vec<u8>) -> Written {
        self.deeper()?;
        let (start, mut count) = (out.len(), 0);
        out.push(0);
        while self.json.another(count == 0, b']')? {
            self.value(items, out).map_err(|misfit| misfit.within(format!("[{count}]")))?;
            count += 1;
        }
        end_of_block(start, count, out);
        self.depth -= 1;
        Ok(())
    }

    fn map(&mut self, values: NodeId, out: &mut Vec<u8>) -> Written {
        self.deeper()?;
        let start = out.len();
        out.push(0);
        let mut keys: Vec<Cow<'a, str>> = Vec::new();
        let mut ascending = true;
        while self.json.another(keys.is_empty(), b'}')? {
            let key = self.json.key()?.unescaped()?;
            string(&key, out);
            self.value(values, out).map_err(|misfit| misfit.within_key(&key))?;
            ascending &= keys.last().is_none_or(|last| *last < key);
            keys.push(key);
        }
        end_of_block(start, keys.len(), out);
        // Keys that ascend are no key twice.
        if !ascending {
            keys.sort_unstable();
            if let Some((key, _)) = keys.iter().zip(&keys[1..]).find(|(one, other)| one == other) {
                return Err(given_twice(key));
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn record(&mut self, record: &Record, out: &mut Vec<u8>) -> Written {
        let mut on_stack = [ABSENT; FIELDS_ON_STACK];
        let mut on_heap;
        let spans = match record.fields.len() {
            count @ ..=FIELDS_ON_STACK => &mut on_stack[..count],
            count => {
                on_heap = vec![ABSENT; count];
                &mut on_heap[..]
            }
        };
        self.deeper()?;
        let start = out.len();
        self.fields(record, spans, out)?;
        self.depth -= 1;
        // They came in the payload's order. In the schema's order they are put behind themselves, and moved to where they began.
        let end = out.len();
        for (field, span) in record.fields.iter().zip(&*spans) {
            match (*span, &field.absent) {
                (ABSENT, Some(bytes)) => out.extend_from_slice(bytes),
                (ABSENT, None) => return Err(Misfit::new("missing").within_key(&field.name)),
                ((from, to), _) => out.extend_from_within(from..to),
            }
        }
        out.copy_within(end.., start);
        out.truncate(out.len() - (end - start));
        Ok(())
    }

    /// Writes the fields in the order in which the payload has them.
    fn fields(&mut self, record: &Record, spans: &mut [Span], out: &mut Vec<u8>) -> Written {
        let (mut first, mut next) = (true, 0);
        while self.json.another(first, b'}')? {
            first = false;
            let key = self.json.key()?.unescaped()?;
            let Some(place) = record.place(&key, &mut next) else {
                return Err(Misfit::new("not a field of the schema").within_key(&key));
            };
            if spans[place] != ABSENT {
                return Err(given_twice(&key));
            }
            let from = out.len();
            self.value(record.fields[place].node, out).map_err(|misfit| misfit.within_key(&key))?;
            spans[place] = (from, out.len());
        }
        Ok(())
    }

    /// The first branch that fits, in the order of the schema.
    fn union(&mut self, union: &Union, kind: Kind, out: &mut Vec<u8>) -> Written {
        let in_default = self.in_default;
        let mut fitting = union
            .branches
            .iter()
            .filter(|branch| branch.kind == kind || (in_default && branch.moment && kind == Kind::Number));
        let Some(first) = fitting.next() else { return Err(self.no_branch(union, kind)) };
        let Some(second) = fitting.next() else {
            length(first.place, out);
            return self.value_of(kind, first.node, out);
        };
        let (start, json, depth) = (out.len(), self.json.clone(), self.depth);
        let mut last = None;
        for branch in [first, second].into_iter().chain(fitting) {
            length(branch.place, out);
            let misfit = match self.value_of(kind, branch.node, out) {
                Err(misfit) if !misfit.0.hopeless => misfit,
                end => return end,
            };
            self.reread += self.json.at() - json.at();
            if self.reread > self.reread_max {
                return Err(Misfit::hopeless("the unions of the schema leave too many ways to read it"));
            }
            last = Some(misfit);
            out.truncate(start);
            self.json = json.clone();
            self.depth = depth;
        }
        match last {
            // Of two branches, the last one's own reason says most.
            Some(misfit) if union.branches.len() <= 2 => Err(misfit),
            _ => Err(fits_no_branch(kind)),
        }
    }

    #[cold]
    fn no_branch(&self, union: &Union, kind: Kind) -> Misfit {
        match union.branches.iter().rfind(|branch| branch.kind != Kind::Null) {
            Some(branch) if union.branches.len() <= 2 => self.unexpected(kind, branch.node),
            _ => fits_no_branch(kind),
        }
    }
}

#[cold]
fn fits_no_branch(kind: Kind) -> Misfit {
    Misfit::new(format!("{} fits no branch of the union", kind.name()))
}

/// Which of the two was meant?
#[cold]
fn given_twice(key: &str) -> Misfit {
    Misfit::new("given twice").within_key(key)
}
