//! Reads JSON text in place, value by value: the caller says what it expects next, and can go back to where it was.
//!
//! A number stays text until its schema says what it is, so that no digit is lost on the way; a string without escapes is a slice
//! of the text.

use std::borrow::Cow;

/// A place in a text.
#[derive(Clone, Debug)]
pub(super) struct Json<'t> {
    text: &'t str,
    at: usize,
}

/// What a value is, as its first character shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Boolean,
    Number,
    String,
    Array,
    Object,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean => "a boolean",
            Self::Number => "a number",
            Self::String => "a string",
            Self::Array => "an array",
            Self::Object => "an object",
        }
    }
}

/// The text is not JSON.
#[derive(Clone, Copy, Debug)]
pub(super) struct Malformed {
    /// Byte of the text.
    pub(super) at: usize,
    pub(super) reason: &'static str,
}

/// A string as it is written, without its quotes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'t> {
    raw: &'t str,
    escaped: bool,
    at: usize,
}

impl<'t> Text<'t> {
    /// The string that is meant.
    #[inline]
    pub(super) fn unescaped(self) -> Result<Cow<'t, str>, Malformed> {
        if self.escaped { self.unescape().map(Cow::Owned) } else { Ok(Cow::Borrowed(self.raw)) }
    }

    #[cold]
    fn unescape(self) -> Result<String, Malformed> {
        let mut meant = String::with_capacity(self.raw.len());
        let mut rest = self.raw;
        while let Some(plain) = rest.find('\\') {
            meant.push_str(&rest[..plain]);
            rest = &rest[plain + 1..];
            let malformed = |reason| Malformed { at: self.at + self.raw.len() - rest.len(), reason };
            let (character, length) = match rest.as_bytes().first() {
                Some(same @ (b'"' | b'\\' | b'/')) => (char::from(*same), 1),
                Some(b'b') => ('\u{8}', 1),
                Some(b'f') => ('\u{c}', 1),
                Some(b'n') => ('\n', 1),
                Some(b'r') => ('\r', 1),
                Some(b't') => ('\t', 1),
                Some(b'u') => unicode_escape(rest).map_err(malformed)?,
                _ => return Err(malformed("no such escape")),
            };
            meant.push(character);
            rest = &rest[length..];
        }
        meant.push_str(rest);
        Ok(meant)
    }
}

/// The character that `uXXXX`, or `uXXXX\uXXXX` for a pair of surrogates, stands for, and how long that is.
fn unicode_escape(text: &str) -> Result<(char, usize), &'static str> {
    let unit = |text: &str| {
        let digits = text.strip_prefix('u').and_then(|text| text.get(..4));
        let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        digits.and_then(|digits| u16::from_str_radix(digits, 16).ok()).ok_or("\\u without four digits")
    };
    let first = unit(text)?;
    let second = text[5..].strip_prefix('\\').and_then(|text| unit(text).ok());
    let units = [first, second.unwrap_or_default()];
    match char::decode_utf16(units).next() {
        Some(Ok(character)) => Ok((character, if character.len_utf16() == 1 { 5 } else { 11 })),
        _ => Err("a surrogate without its other half"),
    }
}

/// A number as it is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number<'t> {
    pub(super) text: &'t str,
    /// Written without fraction and exponent.
    pub(super) integer: bool,
}

impl<'t> Json<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, at: 0 }
    }

    /// Byte of the text that comes next.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn malformed<T>(&self, reason: &'static str) -> Result<T, Malformed> {
        Err(Malformed { at: self.at, reason })
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    #[inline]
    fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    #[inline]
    fn skip(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// What comes next, in front of which it goes.
    #[inline]
    pub(super) fn kind(&mut self) -> Result<Kind, Malformed> {
        self.skip_whitespace();
        match self.peek() {
            Some(b'"') => Ok(Kind::String),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b'n') => Ok(Kind::Null),
            Some(b't' | b'f') => Ok(Kind::Boolean),
            Some(_) => self.malformed("a value was expected"),
            None => self.malformed("the text ends too early"),
        }
    }

    pub(super) fn null(&mut self) -> Result<(), Malformed> {
        self.word("null")
    }

    pub(super) fn boolean(&mut self) -> Result<bool, Malformed> {
        let flag = self.peek() == Some(b't');
        self.word(if flag { "true" } else { "false" }).map(|()| flag)
    }

    fn word(&mut self, word: &str) -> Result<(), Malformed> {
        if self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(())
        } else {
            self.malformed("a value was expected")
        }
    }

    pub(super) fn number(&mut self) -> Result<Number<'t>, Malformed> {
        let start = self.at;
        self.skip(b'-');
        if !self.skip(b'0') {
            self.digits()?;
        }
        let whole = self.at;
        if self.skip(b'.') {
            self.digits()?;
        }
        if self.skip(b'e') || self.skip(b'E') {
            if !self.skip(b'-') {
                self.skip(b'+');
            }
            self.digits()?;
        }
        Ok(Number { text: &self.text[start..self.at], integer: self.at == whole })
    }

    fn digits(&mut self) -> Result<(), Malformed> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start { self.malformed("a digit was expected") } else { Ok(()) }
    }

    /// A string, its quotes included.
    #[inline]
    pub(super) fn string(&mut self) -> Result<Text<'t>, Malformed> {
        let bytes = self.text.as_bytes();
        let start = self.at + 1;
        let mut escaped = false;
        self.at = start;
        loop {
            self.at = end_of_plain_text(bytes, self.at);
            match self.peek() {
                Some(b'"') => {
                    let raw = &self.text[start..self.at];
                    self.at += 1;
                    return Ok(Text { raw, escaped, at: start });
                }
                // Whatever is escaped, it does not end the string.
                Some(b'\\') => {
                    escaped = true;
                    self.at += 2;
                }
                Some(_) => return self.malformed("a control character in a string"),
                None => {
                    self.at = bytes.len();
                    return self.malformed("the text ends too early");
                }
            }
        }
    }

    /// `[` or `{`, which [`Self::kind`] has seen.
    #[inline]
    pub(super) fn open(&mut self) {
        self.at += 1;
    }

    /// Whether another item follows in an array or object that ends with `close`; if none does, goes past its end.
    #[inline]
    pub(super) fn another(&mut self, first: bool, close: u8) -> Result<bool, Malformed> {
        self.skip_whitespace();
        if self.skip(close) {
            return Ok(false);
        }
        if !first && !self.skip(b',') {
            return self.malformed("a comma or the end was expected");
        }
        Ok(true)
    }

    /// The key of an object's entry, and the colon after it.
    #[inline]
    pub(super) fn key(&mut self) -> Result<Text<'t>, Malformed> {
        self.skip_whitespace();
        if self.peek() != Some(b'"') {
            return self.malformed("a key was expected");
        }
        let key = self.string()?;
        self.skip_whitespace();
        if !self.skip(b':') {
            return self.malformed("a colon was expected");
        }
        Ok(key)
    }

    /// Fails if anything but white space follows.
    pub(super) fn end(&mut self) -> Result<(), Malformed> {
        self.skip_whitespace();
        if self.at == self.text.len() { Ok(()) } else { self.malformed("the end was expected") }
    }
}

/// The first byte from `at` on that is a quote, a backslash or a control character. Eight bytes at a time: most of a payload is text.
fn end_of_plain_text(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = u64::MAX / 255;
    // The top bit of each byte that is zero; bytes above the lowest such byte may be marked wrongly.
    let zero_bytes = |word: u64| word.wrapping_sub(ONES) & !word & (ONES << 7);
    while let Some(chunk) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*chunk);
        let quotes = zero_bytes(word ^ (ONES * u64::from(b'"')));
        let backslashes = zero_bytes(word ^ (ONES * u64::from(b'\\')));
        let control_characters = word.wrapping_sub(ONES * 0x20) & !word & (ONES << 7);
        let found = quotes | backslashes | control_characters;
        if found != 0 {
            return at + (found.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while let Some(byte) = bytes.get(at)
        && !matches!(byte, b'"' | b'\\' | ..=0x1f)
    {
        at += 1;
    }
    at
}
