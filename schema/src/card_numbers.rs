//! Card numbers, which belong into no message, table or log: finding what looks like one, and masking it.

use std::{borrow::Cow, ops::Range};

use uuid::Uuid;

/// What stands in the place of a digit that must not be kept.
const MASK: u8 = b'*';
/// The groups printed on cards.
const LAYOUTS: [&[usize]; 3] = [&[4, 4, 4, 4, 3], &[4, 4, 4, 4], &[4, 6, 5]];

/// Whether a text contains what looks like a card number: 13 to 19 digits with a right check digit (Luhn), alone or in the groups
/// printed on cards, beginning with 2 to 6 as all cards in trade do. Times in milliseconds and nanoseconds begin with 1.
///
/// Ids in hexadecimal are full of digits: what is a uuid, or part of 32 and more hexadecimal digits, is none.
pub fn looks_like_card_number(text: &str) -> bool {
    Uuid::try_parse(text).is_err() && find(text.as_bytes(), 0).is_some()
}

/// The same text with every digit of what looks like a card number replaced.
pub fn mask_card_numbers_in(text: &str) -> Cow<'_, str> {
    if !looks_like_card_number(text) {
        return Cow::Borrowed(text);
    }
    // One ASCII character takes the place of another: it is still UTF-8.
    match mask(text.as_bytes(), find) {
        Cow::Borrowed(_) => Cow::Borrowed(text),
        Cow::Owned(masked) => Cow::Owned(String::from_utf8_lossy(&masked).into_owned()),
    }
}

/// The same bytes with every digit of what might be a card number replaced; as many bytes as before. In bytes nobody knows where a text
/// begins and ends, and what stands beside it, a length say, may look like a digit: so whatever is around counts for nothing here.
pub fn mask_card_numbers(bytes: &[u8]) -> Cow<'_, [u8]> {
    if std::str::from_utf8(bytes).is_ok_and(|text| Uuid::try_parse(text).is_ok()) {
        return Cow::Borrowed(bytes);
    }
    mask(bytes, find_within)
}

fn mask(bytes: &[u8], find: impl Fn(&[u8], usize) -> Option<Range<usize>>) -> Cow<'_, [u8]> {
    let mut masked = Cow::Borrowed(bytes);
    let mut from = 0;
    while let Some(found) = find(bytes, from) {
        from = found.end;
        let digits = masked.to_mut()[found].iter_mut().filter(|byte| byte.is_ascii_digit());
        digits.for_each(|digit| *digit = MASK);
    }
    masked
}

/// Where the next one is that begins at `from` or later.
fn find(bytes: &[u8], from: usize) -> Option<Range<usize>> {
    let mut start = from;
    while start < bytes.len() {
        let run = digits_at(bytes, start);
        if run == 0 {
            start += 1;
            continue;
        }
        let alone = (13..=19).contains(&run) && !within_long_hex(bytes, start, run);
        if alone && is_card_number(&bytes[start..start + run]) {
            return Some(start..start + run);
        }
        let alone = start == 0 || !bytes[start - 1].is_ascii_alphanumeric();
        if let Some(end) = grouped_card_number(bytes, start)
            && alone
            && !bytes.get(end).is_some_and(u8::is_ascii_alphanumeric)
        {
            return Some(start..end);
        }
        start += run;
    }
    None
}

/// Where the next one might be, whatever is around it; the longest that begins there.
fn find_within(bytes: &[u8], from: usize) -> Option<Range<usize>> {
    (from..bytes.len()).find_map(|start| {
        let run = digits_at(&bytes[..bytes.len().min(start + 19)], start);
        let lengths = (13..=run).rev();
        let alone = lengths.map(|length| start + length).find(|end| is_card_number(&bytes[start..*end]));
        alone.or_else(|| grouped_card_number(bytes, start)).map(|end| start..end)
    })
}

fn digits_at(bytes: &[u8], start: usize) -> usize {
    bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count()
}

fn within_long_hex(bytes: &[u8], start: usize, run: usize) -> bool {
    // No further than it matters: somebody may send a megabyte of hexadecimal digits.
    let before = bytes[..start].iter().rev().take(32).take_while(|b| b.is_ascii_hexdigit()).count();
    let after = bytes[start + run..].iter().take(32).take_while(|b| b.is_ascii_hexdigit()).count();
    before + run + after >= 32
}

/// The end of digits in groups, separated by one blank or dash.
fn grouped_card_number(bytes: &[u8], start: usize) -> Option<usize> {
    LAYOUTS.into_iter().find_map(|layout| {
        let mut digits = Vec::with_capacity(19);
        let mut at = start;
        for (index, group) in layout.iter().enumerate() {
            if index > 0 {
                if !matches!(bytes.get(at), Some(b' ' | b'-')) {
                    return None;
                }
                at += 1;
            }
            match bytes.get(at..at + group) {
                Some(found) if found.iter().all(u8::is_ascii_digit) => digits.extend_from_slice(found),
                _ => return None,
            }
            at += group;
        }
        is_card_number(&digits).then_some(at)
    })
}

fn is_card_number(digits: &[u8]) -> bool {
    let doubled = |digit: u32| if digit > 4 { digit * 2 - 9 } else { digit * 2 };
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(index, byte)| {
            let digit = u32::from(byte - b'0');
            if index % 2 == 0 { digit } else { doubled(digit) }
        })
        .sum();
    matches!(digits.first(), Some(b'2'..=b'6')) && sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn card_numbers_are_found_wherever_they_stand() {
        for text in [
            "4111111111111111",
            "4242424242424242",
            "5555555555554444",
            "378282246310005",
            "6011111111111117",
            "2223003122003222",
            "4222222222222",
            "card 4111 1111 1111 1111 of Ann",
            "4111-1111-1111-1111",
            "3782 822463 10005",
            "ref4111111111111111x",
            "order-5555555555554444-1",
        ] {
            assert!(looks_like_card_number(text), "{text}");
        }
    }

    #[test]
    fn ids_times_and_tokens_are_not_card_numbers() {
        for text in [
            "",
            "pm_card_visa",
            "pm_1NvB2qLkdIwHu7ixYlPq8a9D",
            "4111111111111112",
            "order-1763870442123",
            "1763870442123456789",
            "411111111111",
            "41111111111111111111",
            "12345678-4111-4111-8111-411111111111",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "41111111111111110000000000000000",
        ] {
            assert!(!looks_like_card_number(text), "{text}");
        }
        for _ in 0..20_000 {
            let id = Uuid::now_v7();
            assert!(!looks_like_card_number(&format!("order-{id}")), "{id}");
            assert!(!looks_like_card_number(&id.simple().to_string()), "{id}");
        }
    }

    #[test]
    fn what_is_masked_keeps_its_length_and_everything_around() {
        for (text, masked) in [
            ("4111111111111111", "****************"),
            ("a 4111 1111 1111 1111, 5555555555554444.", "a **** **** **** ****, ****************."),
            ("ref4111-1111-1111-1111", "ref4111-1111-1111-1111"),
            ("ref 4111-1111-1111-1111", "ref ****-****-****-****"),
            ("4111111111111112", "4111111111111112"),
            ("é4222222222222é", "é*************é"),
            ("12345678-4111-4111-8111-411111111111", "12345678-4111-4111-8111-411111111111"),
            ("", ""),
        ] {
            assert_eq!(mask_card_numbers_in(text), masked);
        }
    }

    #[test]
    fn a_megabyte_of_digits_is_gone_through_once() {
        for unit in ["7", "4111111111111112a", "1"] {
            let text = unit.repeat((1 << 20) / unit.len());
            assert!(!looks_like_card_number(&text) || unit.len() > 1);
            assert_eq!(mask_card_numbers(text.as_bytes()).len(), text.len());
        }
    }

    #[test]
    fn in_bytes_nothing_around_hides_a_card_number() {
        for (bytes, masked) in [
            (&b"\x00\xff4111111111111111\x00"[..], &b"\x00\xff****************\x00"[..]),
            // The length of an Avro text, 28, is written as the digit 8.
            (b"pm_55555555555544448order", b"pm_****************8order"),
            (b"2222222222254111111111111111", b"***************1111111111111"),
            (b"ref4111-1111-1111-1111x", b"ref****-****-****-****x"),
            (b"4242 4242 4242 42421", b"**** **** **** ****1"),
            (b"12345678-4111-4111-8111-411111111111", b"12345678-4111-4111-8111-411111111111"),
            (b"1763870442123", b"1763870442123"),
            (b"4111111111111112", b"4111111111111112"),
        ] {
            let found = mask_card_numbers(bytes);
            assert_eq!(found.as_ref(), masked, "{}", bytes.escape_ascii());
            assert_eq!(found.len(), bytes.len());
        }
    }
}
