//! A schema made ready for writing: a table of nodes that refer to each other by their place in it, whatever the schema itself
//! nests, names or repeats. Defaults are bytes, symbols and keys are sorted.

use std::collections::HashMap;

use anyhow::{Context as _, bail, ensure};
use apache_avro::{
    Schema,
    schema::{EnumSchema, Name, RecordField, RecordSchema, UnionSchema, UuidSchema},
};

use super::{
    json::Kind,
    moment::{Moment, Unit},
    write,
};

/// What is written for a payload of one event type.
#[derive(Debug)]
pub(super) struct Plan {
    nodes: Vec<Node>,
    root: NodeId,
}

/// Place of a node in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeId(usize);

#[derive(Debug)]
pub(super) enum Node {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    String,
    Uuid(UuidForm),
    Moment(Moment),
    Enum(Symbols),
    Array(NodeId),
    Map(NodeId),
    Record(Record),
    Union(Union),
}

/// How Avro writes a uuid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UuidForm {
    String,
    Bytes,
    Fixed,
}

/// The symbols of an enum, sorted, each with its place in the schema.
#[derive(Debug)]
pub(super) struct Symbols(Box<[(Box<str>, usize)]>);

impl Symbols {
    fn new(schema: &EnumSchema) -> Self {
        let places = schema.symbols.iter().zip(0..);
        let mut symbols: Box<[_]> =
            places.map(|(symbol, place)| (Box::from(symbol.as_str()), place)).collect();
        symbols.sort();
        Self(symbols)
    }

    pub(super) fn place(&self, symbol: &str) -> Option<usize> {
        let found = self.0.binary_search_by(|(known, _)| (**known).cmp(symbol));
        found.ok().map(|at| self.0[at].1)
    }
}

#[derive(Debug)]
pub(super) struct Record {
    name: Box<str>,
    /// In the order in which Avro writes them.
    pub(super) fields: Box<[Field]>,
    /// Their names and places, by name.
    keys: Box<[(Box<str>, usize)]>,
}

impl Record {
    /// The place of the field that a payload's key names. `next` is where the last key was found, plus one: keys by name, as
    /// serde_json writes them, are found there.
    pub(super) fn place(&self, key: &str, next: &mut usize) -> Option<usize> {
        let at = match self.keys.get(*next) {
            Some((known, _)) if **known == *key => *next,
            _ => self.keys.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?,
        };
        *next = at + 1;
        Some(self.keys[at].1)
    }
}

#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: Box<str>,
    pub(super) node: NodeId,
    /// What is written if a payload does not have the field: its default, or null. None if the payload does not fit then.
    pub(super) absent: Option<Box<[u8]>>,
}

#[derive(Debug)]
pub(super) struct Union {
    pub(super) branches: Box<[Branch]>,
}

impl Union {
    fn null(&self) -> Option<&Branch> {
        self.branches.iter().find(|branch| branch.kind == Kind::Null)
    }
}

#[derive(Debug)]
pub(super) struct Branch {
    pub(super) place: usize,
    pub(super) node: NodeId,
    /// What kind of value a payload has for it.
    pub(super) kind: Kind,
    /// A date or time: text in payloads, but a number in a schema's defaults.
    pub(super) moment: bool,
}

impl Plan {
    /// Fails at what a JSON payload cannot express, and at a default that does not fit, naming the field.
    pub(super) fn new(schema: &Schema) -> anyhow::Result<Self> {
        let mut compiler =
            Compiler { plan: Self { nodes: Vec::new(), root: NodeId(0) }, known: HashMap::new() };
        let root = compiler.node(schema, "")?;
        Ok(Self { root, ..compiler.plan })
    }

    pub(super) fn root(&self) -> NodeId {
        self.root
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// What a payload should have had for a node.
    pub(super) fn expected(&self, id: NodeId) -> String {
        match self.node(id) {
            Node::Null => "null".to_owned(),
            Node::Boolean => "boolean".to_owned(),
            Node::Int => "int".to_owned(),
            Node::Long => "long".to_owned(),
            Node::Float => "float".to_owned(),
            Node::Double => "double".to_owned(),
            Node::String => "string".to_owned(),
            Node::Uuid(_) => "a uuid as string".to_owned(),
            Node::Moment(moment) => format!("{} as string", moment.name()),
            Node::Enum(_) => "an enum symbol as string".to_owned(),
            Node::Array(_) => "an array".to_owned(),
            Node::Map(_) => "an object for a map".to_owned(),
            Node::Record(record) => format!("an object for record {}", record.name),
            Node::Union(_) => "a branch of the union".to_owned(),
        }
    }
}

struct Compiler<'s> {
    plan: Plan,
    /// Types with a name, each compiled once: that is how a type can contain itself. The parser has put names in full.
    known: HashMap<&'s Name, (NodeId, Kind)>,
}

impl<'s> Compiler<'s> {
    fn node(&mut self, schema: &'s Schema, path: &str) -> anyhow::Result<NodeId> {
        if let Schema::Ref { name } = schema {
            return Ok(self.known(name)?.0);
        }
        // The place is taken before the insides are compiled, which may refer to it.
        let id = NodeId(self.plan.nodes.len());
        self.plan.nodes.push(Node::Null);
        if let Some(name) = schema.name() {
            let other = self.known.insert(name, (id, kind(schema)));
            ensure!(other.is_none(), "{name} is defined twice");
        }
        self.plan.nodes[id.0] = match schema {
            Schema::Null => Node::Null,
            Schema::Boolean => Node::Boolean,
            Schema::Int => Node::Int,
            Schema::Long => Node::Long,
            Schema::Float => Node::Float,
            Schema::Double => Node::Double,
            Schema::String => Node::String,
            Schema::Uuid(UuidSchema::String) => Node::Uuid(UuidForm::String),
            Schema::Uuid(UuidSchema::Bytes) => Node::Uuid(UuidForm::Bytes),
            Schema::Uuid(UuidSchema::Fixed(_)) => Node::Uuid(UuidForm::Fixed),
            Schema::Enum(schema) => Node::Enum(Symbols::new(schema)),
            Schema::Array(schema) => Node::Array(self.node(&schema.items, &format!("{path}[]"))?),
            Schema::Map(schema) => Node::Map(self.node(&schema.types, &format!("{path}.*"))?),
            Schema::Union(schema) => Node::Union(self.union(schema, path)?),
            Schema::Record(schema) => Node::Record(self.record(schema, path)?),
            Schema::Bytes => return refused(path, "bytes"),
            Schema::Fixed(_) => return refused(path, "fixed"),
            Schema::Decimal(_) | Schema::BigDecimal => return refused(path, "decimal"),
            Schema::Duration(_) => return refused(path, "duration"),
            other => match moment(other) {
                Some(moment) => Node::Moment(moment),
                None => return refused(path, &format!("{other:?}")),
            },
        };
        Ok(id)
    }

    fn known(&self, name: &Name) -> anyhow::Result<(NodeId, Kind)> {
        self.known.get(name).copied().with_context(|| format!("{name} is not defined"))
    }

    fn union(&mut self, schema: &'s UnionSchema, path: &str) -> anyhow::Result<Union> {
        let mut branches = Vec::with_capacity(schema.variants().len());
        for (place, variant) in schema.variants().iter().enumerate() {
            let node = self.node(variant, path)?;
            let kind = match variant {
                Schema::Ref { name } => self.known(name)?.1,
                definition => kind(definition),
            };
            branches.push(Branch { place, node, kind, moment: moment(variant).is_some() });
        }
        Ok(Union { branches: branches.into() })
    }

    fn record(&mut self, schema: &'s RecordSchema, path: &str) -> anyhow::Result<Record> {
        let mut fields = Vec::with_capacity(schema.fields.len());
        for field in &schema.fields {
            let path = format!("{path}.{}", field.name);
            let node = self.node(&field.schema, &path)?;
            let absent = self.absent(field, node, &path)?;
            fields.push(Field { name: field.name.as_str().into(), node, absent });
        }
        let mut keys: Box<[_]> = fields.iter().map(|field| field.name.clone()).zip(0..).collect();
        keys.sort();
        Ok(Record { name: schema.name.to_string().into(), fields: fields.into(), keys })
    }

    fn absent(&self, field: &RecordField, node: NodeId, path: &str) -> anyhow::Result<Option<Box<[u8]>>> {
        let mut bytes = Vec::new();
        match (&field.default, self.plan.node(node)) {
            (Some(default), _) => {
                if let Err(misfit) = write::default(&self.plan, node, &default.to_string(), &mut bytes) {
                    bail!("field {path}{}: the default does not fit: {}", misfit.path(), misfit.reason());
                }
            }
            (None, Node::Union(union)) => match union.null() {
                Some(null) => write::length(null.place, &mut bytes),
                None => return Ok(None),
            },
            (None, _) => return Ok(None),
        }
        Ok(Some(bytes.into()))
    }
}

fn refused<T>(path: &str, kind: &str) -> anyhow::Result<T> {
    let place = if path.is_empty() { "the schema".to_owned() } else { format!("field {path}") };
    bail!("{place} is of type {kind}, which a JSON payload cannot express")
}

/// What kind of value a payload has for a schema that is neither a union nor a reference.
fn kind(schema: &Schema) -> Kind {
    match schema {
        Schema::Null => Kind::Null,
        Schema::Boolean => Kind::Boolean,
        Schema::Int | Schema::Long | Schema::Float | Schema::Double => Kind::Number,
        Schema::Array(_) => Kind::Array,
        Schema::Map(_) | Schema::Record(_) => Kind::Object,
        _ => Kind::String,
    }
}

fn moment(schema: &Schema) -> Option<Moment> {
    Some(match schema {
        Schema::Date => Moment::Date,
        Schema::TimeMillis => Moment::Time(Unit::Millis),
        Schema::TimeMicros => Moment::Time(Unit::Micros),
        Schema::TimestampMillis => Moment::Timestamp(Unit::Millis),
        Schema::TimestampMicros => Moment::Timestamp(Unit::Micros),
        Schema::TimestampNanos => Moment::Timestamp(Unit::Nanos),
        Schema::LocalTimestampMillis => Moment::LocalTimestamp(Unit::Millis),
        Schema::LocalTimestampMicros => Moment::LocalTimestamp(Unit::Micros),
        Schema::LocalTimestampNanos => Moment::LocalTimestamp(Unit::Nanos),
        _ => return None,
    })
}
