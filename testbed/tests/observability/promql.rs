//! What PromQL expressions name. Whether they are PromQL at all, promtool says.

/// The metrics that a PromQL expression names, each with the function that it is the argument of.
pub(crate) fn names_in(expression: &str) -> Vec<(String, String)> {
    const WORDS: [&str; 10] = ["sum", "min", "max", "avg", "count", "and", "or", "unless", "bool", "offset"];
    const GROUPINGS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
    let (mut names, mut function, mut rest) = (Vec::new(), String::new(), expression);
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':' || c == '.';
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = match first {
            '"' => rest[1..].split_once('"').map_or("", |(_, after)| after),
            '{' => past_the_selector(rest),
            '[' => rest.split_once(']').map_or("", |(_, after)| after),
            _ if word.is_empty() => {
                if !first.is_whitespace() && first != '(' {
                    function.clear();
                }
                &rest[first.len_utf8()..]
            }
            _ if GROUPINGS.contains(&word) => match after.trim_start().strip_prefix('(') {
                Some(labels) => labels.split_once(')').map_or("", |(_, after)| after),
                None => after,
            },
            _ if after.trim_start().starts_with('(') => {
                word.clone_into(&mut function);
                after
            }
            _ => {
                if !first.is_ascii_digit() && !WORDS.contains(&word) {
                    names.push((word.to_owned(), function.clone()));
                }
                after
            }
        };
    }
    names
}

/// What follows `{…}`, in whose strings there may be braces.
fn past_the_selector(text: &str) -> &str {
    let mut quoted = false;
    let end = text.find(|c| {
        quoted ^= c == '"';
        c == '}' && !quoted
    });
    end.map_or("", |end| &text[end + 1..])
}

#[test]
fn names_are_found_in_expressions() {
    let expression = "1 - sum by (x, on) (rate(c_seconds_bucket{le=~\"1|{2}\",y=\"}\"}[1h])) / on (x) group_left e offset 5m > 0.5 and max(a_total) or up == 1";
    let names: Vec<String> =
        names_in(expression).into_iter().map(|(name, function)| format!("{function}({name})")).collect();
    assert_eq!(names, ["rate(c_seconds_bucket)", "(e)", "max(a_total)", "(up)"]);
}
