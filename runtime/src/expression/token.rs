//! JavaScript tokens: enough to find where an expression ends, which names it uses, and whether it is plain
//! enough to be evaluated without a script engine.
//!
//! What is a regular expression and what a division is decided by the token before, which is right for
//! expressions. Nothing unsafe follows from a wrong guess: the script engine's own parser has the last word.

/// Brackets and template literals open at once in one expression.
const DEPTH_MAX: usize = 256;

/// What kind of token it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A name or a keyword.
    Name,
    Number,
    /// In single or double quotes.
    Text,
    Regex,
    /// A template literal without `${`.
    Template,
    /// From the backtick to the first `${`.
    TemplateHead,
    /// From `}` to the next `${`.
    TemplateMiddle,
    /// From `}` to the closing backtick.
    TemplateTail,
    Punctuation,
}

/// A token and its place in the text, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
}

/// Why a text is not a sequence of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub offset: usize,
    pub message: String,
}

/// Longest first, so that the first that fits is the right one.
const PUNCTUATION: &[&str] = &[
    ">>>=", "...", "===", "!==", "**=", "<<=", ">>=", ">>>", "&&=", "||=", "??=", "=>", "==", "!=",
    "<=", ">=", "&&", "||", "??", "?.", "++", "--", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=",
    "<<", ">>", "**", "{", "}", "(", ")", "[", "]", ".", ";", ",", "<", ">", "+", "-", "*", "/",
    "%", "&", "|", "^", "!", "~", "?", ":", "=", "@", "#",
];

/// Keywords an operand follows, so that a slash after them starts a regular expression.
const BEFORE_OPERAND: &[&str] = &[
    "return",
    "typeof",
    "instanceof",
    "in",
    "of",
    "new",
    "delete",
    "void",
    "throw",
    "case",
    "do",
    "else",
    "await",
    "yield",
];

/// Tokens of a whole text.
pub(super) fn tokens(source: &str) -> Result<Vec<Token>, Unreadable> {
    let mut scanner = Scanner::new(source, 0);
    let mut found = Vec::new();
    while let Some(token) = scanner.next(false)? {
        found.push(token);
    }
    scanner.finish()?;
    Ok(found)
}

/// Tokens from `start` to the `}}` that closes an expression, and where that is. `None` when nothing closes it.
pub(super) fn tokens_until_close(
    source: &str,
    start: usize,
) -> Result<Option<(Vec<Token>, usize)>, Unreadable> {
    let mut scanner = Scanner::new(source, start);
    let mut found = Vec::new();
    while let Some(token) = scanner.next(true)? {
        found.push(token);
    }
    if source[scanner.at..].starts_with("}}") {
        return Ok(Some((found, scanner.at)));
    }
    scanner.finish()?;
    Ok(None)
}

struct Scanner<'a> {
    source: &'a str,
    at: usize,
    /// What is open, innermost last: `(`, `[`, `{` or a backtick for `${`, each with its place.
    open: Vec<(u8, usize)>,
    operand_next: bool,
}

impl<'a> Scanner<'a> {
    fn new(source: &'a str, at: usize) -> Self {
        Self {
            source,
            at,
            open: Vec::new(),
            operand_next: true,
        }
    }

    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn fault<T>(&self, offset: usize, message: impl Into<String>) -> Result<T, Unreadable> {
        Err(Unreadable {
            offset,
            message: message.into(),
        })
    }

    fn finish(&self) -> Result<(), Unreadable> {
        match self.open.last() {
            None => Ok(()),
            Some((b'`', at)) => self.fault(*at, "the template literal is not closed"),
            Some((bracket, at)) => {
                self.fault(*at, format!("`{}` is not closed", char::from(*bracket)))
            }
        }
    }

    /// The next token; `None` at the end, or with `in_text` before a `}}` that closes nothing inside.
    fn next(&mut self, in_text: bool) -> Result<Option<Token>, Unreadable> {
        self.skip_blank(in_text)?;
        let start = self.at;
        let Some(first) = self.rest().chars().next() else {
            return Ok(None);
        };
        if in_text && self.open.is_empty() && self.rest().starts_with("}}") {
            return Ok(None);
        }
        let kind = match first {
            '\'' | '"' => self.quoted(first)?,
            '`' => {
                self.at += 1;
                self.template(start, Kind::Template, Kind::TemplateHead)?
            }
            '0'..='9' => self.number(),
            '.' if self.rest()[1..].starts_with(|c: char| c.is_ascii_digit()) => self.number(),
            '/' if self.operand_next => self.regex()?,
            '}' if matches!(self.open.last(), Some((b'`', _))) => {
                self.at += 1;
                let opened = self.open.pop().map_or(start, |(_, at)| at);
                self.template(opened, Kind::TemplateTail, Kind::TemplateMiddle)?
            }
            c if is_name(c) || c == '\\' => self.name(),
            _ => self.punctuation()?,
        };
        let text = &self.source[start..self.at];
        self.operand_next = match kind {
            Kind::Name => BEFORE_OPERAND.contains(&text),
            Kind::Punctuation => !matches!(text, ")" | "]" | "}" | "++" | "--"),
            Kind::TemplateHead | Kind::TemplateMiddle => true,
            _ => false,
        };
        Ok(Some(Token {
            kind,
            start,
            end: self.at,
        }))
    }

    /// Blanks and comments. In a text a line comment also ends before `}}`, or it would swallow the end.
    fn skip_blank(&mut self, in_text: bool) -> Result<(), Unreadable> {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
            self.at += rest.len() - trimmed.len();
            if trimmed.starts_with("//") {
                let line = trimmed
                    .find(['\n', '\r', '\u{2028}', '\u{2029}'])
                    .unwrap_or(trimmed.len());
                let end = match trimmed[..line].find("}}") {
                    Some(close) if in_text => close,
                    _ => line,
                };
                self.at += end;
                if end < line {
                    return Ok(());
                }
            } else if trimmed.starts_with("/*") {
                match trimmed.find("*/") {
                    Some(end) => self.at += end + 2,
                    None => return self.fault(self.at, "the comment is not closed"),
                }
            } else {
                return Ok(());
            }
        }
    }

    fn quoted(&mut self, quote: char) -> Result<Kind, Unreadable> {
        let start = self.at;
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => {
                    // A carriage return and a line feed continue the line together.
                    if let Some((_, '\r')) = chars.next()
                        && self.source[start + at + 2..].starts_with('\n')
                    {
                        chars.next();
                    }
                }
                '\n' | '\r' => break,
                c if c == quote => {
                    self.at = start + at + 1;
                    return Ok(Kind::Text);
                }
                _ => {}
            }
        }
        self.fault(start, "the string is not closed")
    }

    fn template(&mut self, start: usize, whole: Kind, part: Kind) -> Result<Kind, Unreadable> {
        let from = self.at;
        let mut chars = self.source[from..].char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => {
                    chars.next();
                }
                '`' => {
                    self.at = from + at + 1;
                    return Ok(whole);
                }
                '$' if self.source[from + at + 1..].starts_with('{') => {
                    self.at = from + at + 2;
                    self.push(b'`', start)?;
                    return Ok(part);
                }
                _ => {}
            }
        }
        self.fault(start, "the template literal is not closed")
    }

    fn regex(&mut self) -> Result<Kind, Unreadable> {
        let start = self.at;
        let mut in_class = false;
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => {
                    chars.next();
                }
                '[' => in_class = true,
                ']' => in_class = false,
                '\n' | '\r' => break,
                '/' if !in_class => {
                    self.at = start + at + 1;
                    self.at += self.rest().len() - self.rest().trim_start_matches(is_name).len();
                    return Ok(Kind::Regex);
                }
                _ => {}
            }
        }
        self.fault(start, "the regular expression is not closed")
    }

    fn number(&mut self) -> Kind {
        let bytes = self.rest().as_bytes();
        let radix = bytes[0] == b'0' && bytes.get(1).is_some_and(|c| b"xXoObB".contains(c));
        let mut end = 0;
        while let Some(byte) = bytes.get(end) {
            let sign = matches!(byte, b'+' | b'-')
                && !radix
                && end > 0
                && matches!(bytes[end - 1], b'e' | b'E');
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.') || sign) {
                break;
            }
            // `1..toString()`: the second point is no part of the number.
            if *byte == b'.' && (radix || bytes[..end].contains(&b'.')) {
                break;
            }
            end += 1;
        }
        self.at += end;
        Kind::Number
    }

    fn name(&mut self) -> Kind {
        let rest = self.rest();
        let mut end = 0;
        while let Some(c) = rest[end..].chars().next() {
            if is_name(c) || c == '\u{200c}' || c == '\u{200d}' {
                end += c.len_utf8();
            } else if rest[end..].starts_with("\\u{") {
                end += rest[end..].find('}').map_or(3, |close| close + 1);
            } else if c == '\\' {
                end += 1;
            } else {
                break;
            }
        }
        self.at += end;
        Kind::Name
    }

    fn punctuation(&mut self) -> Result<Kind, Unreadable> {
        let rest = self.rest();
        let Some(found) = PUNCTUATION.iter().find(|text| rest.starts_with(**text)) else {
            let odd: String = rest.chars().take(1).collect();
            return self.fault(self.at, format!("unexpected character `{odd}`"));
        };
        // `a?.5:1` is a condition.
        let found = if *found == "?." && rest[2..].starts_with(|c: char| c.is_ascii_digit()) {
            "?"
        } else {
            found
        };
        match found {
            "(" | "[" | "{" => self.push(found.as_bytes()[0], self.at)?,
            ")" => self.pop(b'(')?,
            "]" => self.pop(b'[')?,
            "}" => self.pop(b'{')?,
            _ => {}
        }
        self.at += found.len();
        Ok(Kind::Punctuation)
    }

    fn push(&mut self, bracket: u8, at: usize) -> Result<(), Unreadable> {
        if self.open.len() == DEPTH_MAX {
            return self.fault(at, format!("brackets are nested deeper than {DEPTH_MAX}"));
        }
        self.open.push((bracket, at));
        Ok(())
    }

    fn pop(&mut self, opening: u8) -> Result<(), Unreadable> {
        if self.open.last().is_some_and(|(open, _)| *open == opening) {
            self.open.pop();
            return Ok(());
        }
        // What is still open is where the mistake is, more often than what closes.
        self.finish()?;
        let closing = self.rest().chars().next().unwrap_or_default();
        self.fault(self.at, format!("`{closing}` closes nothing"))
    }
}

fn is_name(c: char) -> bool {
    c == '$' || c == '_' || c.is_alphanumeric()
}

/// What a string or template token stands for. `None` when it needs a script engine to tell, as with half of a
/// surrogate pair.
pub(super) fn text_value(token: &Token, source: &str) -> Option<String> {
    let raw = &source[token.start..token.end];
    let inner = match token.kind {
        Kind::Text | Kind::Template | Kind::TemplateTail => &raw[1..raw.len() - 1],
        Kind::TemplateHead | Kind::TemplateMiddle => &raw[1..raw.len() - 2],
        _ => return None,
    };
    if !inner.contains(['\\', '\r']) {
        return Some(inner.to_owned());
    }
    let mut units: Vec<u16> = Vec::with_capacity(inner.len());
    let mut chars = inner.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\r' {
            return None;
        }
        if c != '\\' {
            units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
            continue;
        }
        let escaped = match chars.next()? {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'v' => '\u{b}',
            '\n' => continue,
            'x' => {
                units.push(u16::try_from(hexadecimal(&mut chars, 2)?).ok()?);
                continue;
            }
            'u' if chars.peek() == Some(&'{') => {
                chars.next();
                let digits: String = chars.by_ref().take_while(|c| *c != '}').collect();
                char::from_u32(u32::from_str_radix(&digits, 16).ok()?)?
            }
            'u' => {
                units.push(u16::try_from(hexadecimal(&mut chars, 4)?).ok()?);
                continue;
            }
            // Octal escapes are syntax errors in strict code, except a lone `\0`.
            '0' if !chars.peek().is_some_and(char::is_ascii_digit) => '\0',
            '0'..='9' | '\r' | '\u{2028}' | '\u{2029}' => return None,
            other => other,
        };
        units.extend_from_slice(escaped.encode_utf16(&mut [0; 2]));
    }
    String::from_utf16(&units).ok()
}

fn hexadecimal(chars: &mut impl Iterator<Item = char>, digits: usize) -> Option<u32> {
    (0..digits).try_fold(0, |sum, _| Some(sum * 16 + chars.next()?.to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<&str> {
        tokens(source)
            .unwrap()
            .iter()
            .map(|token| &source[token.start..token.end])
            .collect()
    }

    #[test]
    fn tokens_are_split_as_javascript_does() {
        assert_eq!(
            texts("a?.b ?? 'x\\'y' + 1.5e-3"),
            ["a", "?.", "b", "??", "'x\\'y'", "+", "1.5e-3"]
        );
        assert_eq!(texts("a?.5:1"), ["a", "?", ".5", ":", "1"]);
        assert_eq!(texts("a / b / c"), ["a", "/", "b", "/", "c"]);
        assert_eq!(texts("a || /[/}]\\//g.test(b)")[2], "/[/}]\\//g");
        assert_eq!(
            texts("`a${b}c${`x`}d`"),
            ["`a${", "b", "}c${", "`x`", "}d`"]
        );
        assert_eq!(texts("1..toString()")[..2], ["1.", "."]);
        assert_eq!(texts("x /* } */ // y\n+ z"), ["x", "+", "z"]);
        assert_eq!(texts("größe+$_"), ["größe", "+", "$_"]);
    }

    #[test]
    fn the_end_of_an_expression_is_not_mistaken_for_a_brace_inside_it() {
        let end = |source: &str| tokens_until_close(source, 0).unwrap().map(|(_, at)| at);
        assert_eq!(end(" a }} b"), Some(3));
        assert_eq!(end("{a:{b:1}}}}"), Some(9));
        assert_eq!(end("'}}' }}"), Some(5));
        assert_eq!(end("`${{a:1}}}}` }}"), Some(13));
        assert_eq!(end("/}}/.test(a) }}"), Some(13));
        assert_eq!(end("a // }}"), Some(5));
        assert_eq!(end("a /* }} */ }}"), Some(11));
        assert_eq!(end("a"), None);
    }

    #[test]
    fn what_is_not_closed_is_named_with_its_place() {
        for (source, offset, message) in [
            ("a + 'b", 4, "the string is not closed"),
            ("a + `b", 4, "the template literal is not closed"),
            ("`${a", 0, "the template literal is not closed"),
            ("f(a", 1, "`(` is not closed"),
            ("a)", 1, "`)` closes nothing"),
            ("[a)", 0, "`[` is not closed"),
            ("a /* b", 2, "the comment is not closed"),
            ("= /x", 2, "the regular expression is not closed"),
        ] {
            let fault = tokens(source).unwrap_err();
            assert_eq!((fault.offset, fault.message.as_str()), (offset, message));
        }
    }

    #[test]
    fn escapes_in_strings_are_read() {
        let value = |source: &str| text_value(&tokens(source).unwrap()[0], source);
        assert_eq!(
            value(r"'a\n\x41\u0042\u{1F600}\\\''").unwrap(),
            "a\nAB😀\\'"
        );
        assert_eq!(value(r"'\ud83d\ude00'").unwrap(), "😀");
        assert_eq!(value(r"'\ud83d'"), None);
        assert_eq!(value(r"'\012'"), None);
    }
}
