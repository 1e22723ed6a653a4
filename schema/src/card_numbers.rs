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

/// The same bytes with every digit of what looks like a card number replaced; as many bytes as before.
pub fn mask_card_numbers(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut masked = Cow::Borrowed(bytes);
    let mut from = 0;
    while let Some(found) = find(bytes, from) {
        from = found.end;
        let digits = masked.to_mut()[found].iter_mut().filter(|byte| byte.is_ascii_digit());
        digits.for_each(|digit| *digit = MASK);
    }
    masked
}

/// The same text with every digit of what looks like a card number replaced.
pub fn mask_card_numbers_in(text: &str) -> Cow<'_, str> {
    if !looks_like_card_number(text) {
        return Cow::Borrowed(text);
    }
    // One ASCII character took the place of another: it is still UTF-8.
    Cow::Owned(String::from_utf8_lossy(&mask_card_numbers(text.as_bytes())).into_owned())
}

/// Where the next one is that begins at `from` or later.
fn find(bytes: &[u8], from: usize) -> Option<Range<usize>> {
    let mut start = from;
    while start < bytes.len() {
        if !bytes[start].is_ascii_digit() {
            start += 1;
            continue;
        }
        let run = bytes[start..].iter().take_while(|b| b.is_ascii_digit()).count();
        let alone = (13..=19).contains(&run) && !within_long_hex(bytes, start, run);
        if alone && is_card_number(&bytes[start..start + run]) {
            return Some(start..start + run);
        }
        if let Some(end) = grouped_card_number(bytes, start) {
            return Some(start..end);
        }
        start += run;
    }
    None
}

fn within_long_hex(bytes: &[u8], start: usize, run: usize) -> bool {
    let before = bytes[..start].iter().rev().take_while(|b| b.is_ascii_hexdigit()).count();
    let after = bytes[start + run..].iter().take_while(|b| b.is_ascii_hexdigit()).count();
    before + run + after >= 32
}

/// The end of digits in groups, separated by one blank or dash, with no letter or digit around.
fn grouped_card_number(bytes: &[u8], start: usize) -> Option<usize> {
    if start > 0 && bytes[start - 1].is_ascii_alphanumeric() {
        return None;
    }
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
        let ends = !bytes.get(at).is_some_and(u8::is_ascii_alphanumeric);
        (ends && is_card_number(&digits)).then_some(at)
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
            ("", ""),
        ] {
            assert_eq!(mask_card_numbers_in(text), masked);
            assert_eq!(mask_card_numbers(text.as_bytes()).as_ref(), masked.as_bytes());
        }
        let id = "12345678-4111-4111-8111-411111111111";
        assert_eq!(mask_card_numbers_in(id), id);
        assert_eq!(
            mask_card_numbers(b"\x00\xff4111111111111111\x00").as_ref(),
            b"\x00\xff****************\x00"
        );
    }
}
