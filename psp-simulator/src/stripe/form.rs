//! Form bodies with bracket keys, as Stripe reads them: `metadata[order]=1&expand[]=latest_charge`.
//!
//! Reads bytes, gives a tree. A name that is given twice keeps its last value; a name used in two shapes is refused.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// The parameters of a request, by name.
pub(crate) type Form = BTreeMap<String, Node>;

const MAX_DEPTH: usize = 6;

/// A parameter's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Text(String),
    Map(Form),
    List(Vec<Node>),
}

/// A parameter name that cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) parameter: String,
}

enum Step<'a> {
    Name(&'a str),
    Append,
}

/// Adds the pairs of `input` to `form`.
pub(crate) fn decode_into(form: &mut Form, input: &[u8]) -> Result<(), Malformed> {
    for (key, value) in form_urlencoded::parse(input) {
        let malformed = || Malformed { parameter: key.to_string() };
        let (name, steps) = split(&key).ok_or_else(malformed)?;
        let slot = form.remove(name);
        form.insert(name.to_owned(), place(slot, &steps, value.into_owned()).ok_or_else(malformed)?);
    }
    Ok(())
}

/// `a[b][]` is `a` and the steps `b`, append.
fn split(key: &str) -> Option<(&str, Vec<Step<'_>>)> {
    let name_ends = key.find('[').unwrap_or(key.len());
    let (name, mut rest) = key.split_at(name_ends);
    if name.is_empty() || name.contains(']') {
        return None;
    }
    let mut steps = Vec::new();
    while !rest.is_empty() {
        let (step, after) = rest.strip_prefix('[')?.split_once(']')?;
        if step.contains('[') || steps.len() == MAX_DEPTH {
            return None;
        }
        steps.push(if step.is_empty() { Step::Append } else { Step::Name(step) });
        rest = after;
    }
    Some((name, steps))
}

fn place(slot: Option<Node>, steps: &[Step<'_>], value: String) -> Option<Node> {
    let Some((step, rest)) = steps.split_first() else {
        return match slot {
            None | Some(Node::Text(_)) => Some(Node::Text(value)),
            Some(Node::Map(_) | Node::List(_)) => None,
        };
    };
    match (step, slot) {
        (Step::Name(name), None) => {
            Some(Node::Map(BTreeMap::from([((*name).to_owned(), place(None, rest, value)?)])))
        }
        (Step::Name(name), Some(Node::Map(mut map))) => {
            let inner = map.remove(*name);
            map.insert((*name).to_owned(), place(inner, rest, value)?);
            Some(Node::Map(map))
        }
        (Step::Append, None) => Some(Node::List(vec![place(None, rest, value)?])),
        (Step::Append, Some(Node::List(mut list))) => {
            // `a[][x]=1&a[][y]=2` is one element, `a[][x]=1&a[][x]=2` are two.
            let same = matches!((rest.first(), list.last()),
                (Some(Step::Name(name)), Some(Node::Map(last))) if !last.contains_key(*name));
            let last = if same { list.pop() } else { None };
            list.push(place(last, rest, value)?);
            Some(Node::List(list))
        }
        (Step::Name(_), Some(Node::Text(_) | Node::List(_)))
        | (Step::Append, Some(Node::Text(_) | Node::Map(_))) => None,
    }
}

/// The same parameters give the same fingerprint, in whatever order they were sent.
pub(crate) fn fingerprint(form: &Form) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hash_map(&mut hasher, form);
    hasher.finalize().into()
}

fn hash_map(hasher: &mut Sha256, map: &Form) {
    hasher.update(b"{");
    for (name, node) in map {
        hash_text(hasher, name);
        hash_node(hasher, node);
    }
    hasher.update(b"}");
}

fn hash_node(hasher: &mut Sha256, node: &Node) {
    match node {
        Node::Text(text) => hash_text(hasher, text),
        Node::Map(map) => hash_map(hasher, map),
        Node::List(list) => {
            hasher.update(b"[");
            for node in list {
                hash_node(hasher, node);
            }
            hasher.update(b"]");
        }
    }
}

fn hash_text(hasher: &mut Sha256, text: &str) {
    hasher.update(b"=");
    hasher.update(text.len().to_be_bytes());
    hasher.update(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(input: &str) -> Result<Form, Malformed> {
        let mut form = Form::new();
        decode_into(&mut form, input.as_bytes())?;
        Ok(form)
    }

    fn text(value: &str) -> Node {
        Node::Text(value.to_owned())
    }

    fn map<const N: usize>(pairs: [(&str, Node); N]) -> Form {
        pairs.into_iter().map(|(name, node)| (name.to_owned(), node)).collect()
    }

    #[test]
    fn plain_names_and_escapes() {
        assert_eq!(
            decode("amount=1099&description=two+%C3%A9clairs%26tea&empty=").unwrap(),
            map([("amount", text("1099")), ("description", text("two éclairs&tea")), ("empty", text(""))])
        );
    }

    #[test]
    fn brackets_plain_or_escaped_nest() {
        let expected = map([("metadata", Node::Map(map([("a", text("1")), ("b c", text("2"))])))]);
        assert_eq!(decode("metadata[a]=1&metadata[b%20c]=2").unwrap(), expected);
        assert_eq!(decode("metadata%5Bb+c%5D=2&metadata%5Ba%5D=1").unwrap(), expected);
        assert_eq!(
            decode("a[b][c]=1&a[b][d]=2").unwrap(),
            map([("a", Node::Map(map([("b", Node::Map(map([("c", text("1")), ("d", text("2"))])))])))])
        );
    }

    #[test]
    fn lists_keep_their_order_and_group_their_maps() {
        assert_eq!(
            decode("expand[]=latest_charge&expand[]=customer").unwrap(),
            map([("expand", Node::List(vec![text("latest_charge"), text("customer")]))])
        );
        assert_eq!(
            decode("l[][x]=1&l[][y]=2&l[][x]=3").unwrap(),
            map([(
                "l",
                Node::List(vec![
                    Node::Map(map([("x", text("1")), ("y", text("2"))])),
                    Node::Map(map([("x", text("3"))]))
                ])
            )])
        );
    }

    #[test]
    fn the_last_of_two_plain_values_counts() {
        assert_eq!(decode("a=1&a=2").unwrap(), map([("a", text("2"))]));
    }

    #[test]
    fn two_shapes_of_one_name_are_refused() {
        for input in ["a=1&a[b]=2", "a[b]=2&a=1", "a[]=1&a[b]=2", "a[b]=1&a[]=2", "a[b]=1&a[b][c]=2"] {
            assert!(decode(input).is_err(), "{input}");
        }
    }

    #[test]
    fn broken_names_are_refused_and_depth_is_bounded() {
        for input in ["=1", "[a]=1", "a[b=1", "a]b=1", "a[b]c=1", "a[[b]]=1"] {
            assert!(decode(input).is_err(), "{input}");
        }
        assert!(decode(&format!("a{}=1", "[x]".repeat(MAX_DEPTH))).is_ok());
        assert!(decode(&format!("a{}=1", "[x]".repeat(MAX_DEPTH + 1))).is_err());
    }

    #[test]
    fn fingerprints_ignore_the_order_of_names_only() {
        let print = |input| fingerprint(&decode(input).unwrap());
        assert_eq!(print("a=1&b[c]=2&b[d]=3"), print("b[d]=3&b[c]=2&a=1"));
        assert_ne!(print("a=1"), print("a=2"));
        assert_ne!(print("a=1"), print("b=1"));
        assert_ne!(print("a[]=1&a[]=2"), print("a[]=2&a[]=1"));
        assert_ne!(print("a[b]=1&c=2"), print("a[b]=1&a[c]=2"));
        assert_ne!(print("a=1b&c=2"), print("a=1&bc=2"));
    }
}
