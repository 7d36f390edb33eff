//! Syntax checks by the script engine's own parser, without running anything.
//!
//! The text is parsed behind a `throw`, so nothing in it can run, and in two surroundings that go on differently, so
//! it cannot close its surroundings and continue behind them. A text that passes both is balanced, and safe to be
//! put into a function.

use std::cell::RefCell;

use rquickjs::{Context, Ctx, Error, Value, context::EvalOptions, context::intrinsic};

use super::engine;

/// A syntax error: where in the text, in bytes, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub offset: usize,
    pub message: String,
}

thread_local! {
    /// Holds nothing but what the language itself defines. A text that fails may leave declarations behind, so the
    /// context is thrown away with it.
    static PARSER: RefCell<Option<Context>> = const { RefCell::new(None) };
}

/// Checks one expression.
pub(super) fn expression(text: &str) -> Result<(), SyntaxError> {
    // A bracket that closes the first surroundings does not fit the second.
    both(text, [("throw 0;(", "\n)"), ("throw 0;[", "\n]")])
}

/// Checks the body of a function, which may use `await` when `waits` is set.
pub(super) fn body(text: &str, waits: bool) -> Result<(), SyntaxError> {
    // Behind a method only `,` or `}` may follow, and neither may follow a function's declaration.
    if waits {
        both(
            text,
            [
                ("throw 0;async function f(){", "\n}"),
                ("throw 0;({async m(){", "\n}})"),
            ],
        )
    } else {
        both(
            text,
            [
                ("throw 0;function f(){", "\n}"),
                ("throw 0;({m(){", "\n}})"),
            ],
        )
    }
}

fn both(text: &str, surroundings: [(&str, &str); 2]) -> Result<(), SyntaxError> {
    PARSER.with_borrow_mut(|kept| {
        let parser = match kept.take() {
            Some(parser) => parser,
            None => new_parser().map_err(|error| SyntaxError {
                offset: 0,
                message: format!("the parser did not start: {error}"),
            })?,
        };
        for (before, after) in surroundings {
            parser.with(|ctx| parse(&ctx, text, before, after))?;
        }
        *kept = Some(parser);
        Ok(())
    })
}

fn new_parser() -> rquickjs::Result<Context> {
    let runtime = engine::new_runtime()?;
    // Declaring an asynchronous function takes promises.
    Context::custom::<(
        intrinsic::Eval,
        intrinsic::RegExpCompiler,
        intrinsic::Promise,
    )>(&runtime)
}

fn parse(ctx: &Ctx<'_>, text: &str, before: &str, after: &str) -> Result<(), SyntaxError> {
    let mut options = EvalOptions::default();
    options.filename = Some("text".to_owned());
    let source = format!("{before}{text}{after}");
    let thrown = match ctx.eval_with_options::<Value<'_>, _>(source, options) {
        Err(Error::Exception) => ctx.catch(),
        Err(Error::InvalidString(_)) => {
            return Err(SyntaxError {
                offset: text.find('\0').unwrap_or(0),
                message: "a NUL character is not allowed".to_owned(),
            });
        }
        Err(error) => {
            return Err(SyntaxError {
                offset: 0,
                message: error.to_string(),
            });
        }
        Ok(_) => return Ok(()),
    };
    let Some(exception) = thrown.as_exception() else {
        // What the surroundings throw: the whole text was parsed.
        return Ok(());
    };
    let place = exception.stack().and_then(|stack| place(&stack));
    let offset = place.map_or(0, |place| offset(text, before.len(), place));
    let message = exception.message().filter(|message| {
        // What stands there is not the author's: it closes the surroundings.
        !(message.starts_with("unexpected token") && text[offset..].trim().is_empty())
    });
    let otherwise = || match place {
        Some(_) => "unexpected end".to_owned(),
        None => "syntax error".to_owned(),
    };
    Err(SyntaxError {
        offset,
        message: message.unwrap_or_else(otherwise),
    })
}

/// Line and column, from 1, in a trace such as `at text:1:12`.
fn place(stack: &str) -> Option<(usize, usize)> {
    let (_, rest) = stack.split_once("text:")?;
    let mut numbers = rest
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<usize>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Columns are counted in bytes, and in the first line from the start of the surroundings.
fn offset(text: &str, before: usize, (line, column): (usize, usize)) -> usize {
    let start: usize = text
        .split_inclusive('\n')
        .take(line.saturating_sub(1))
        .map(str::len)
        .sum();
    let column = (column - 1).saturating_sub(if line == 1 { before } else { 0 });
    let mut at = (start + column).min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_have_their_place() {
        for (text, offset) in [
            ("1 +", 3),
            ("a b", 2),
            ("'é' 5", 5),
            ("1 +\n + * 2", 7),
            ("a ?? b || c", 7),
            ("f() = 1", 6),
            ("await x", 6),
        ] {
            assert_eq!(expression(text).unwrap_err().offset, offset, "{text}");
        }
        assert_eq!(expression("{a: 1}"), Ok(()));
        for (text, message) in [
            ("1 +", "unexpected end"),
            ("1 + \n", "unexpected end"),
            ("1 + ) 2", "unexpected token in expression: ')'"),
        ] {
            assert_eq!(expression(text).unwrap_err().message, message, "{text}");
        }
        let fault = body("let a = [1,\n", false).unwrap_err();
        assert_eq!(fault.message, "unexpected end");
    }

    #[test]
    fn a_text_cannot_close_what_it_stands_in() {
        for text in [
            "1);while(true){};(1",
            "1];while(true){};[1",
            "1) + (1",
            "1, f(), 2) => 1, (1",
            "1 /*",
            "`",
        ] {
            assert!(expression(text).is_err(), "{text}");
        }
        for text in [
            "} f(); {",
            "}, f(), function(){",
            "}}); f(); ({m(){",
            "} g(){",
            "}(f()), function(){",
            "} + {",
            "/*",
            "<!-- x\n `",
        ] {
            assert!(body(text, false).is_err(), "{text}");
            assert!(body(text, true).is_err(), "{text}");
        }
    }

    #[test]
    fn a_body_may_return_and_wait() {
        assert_eq!(body("const a = 1; return {a} // end", false), Ok(()));
        assert_eq!(body("return await 1", true), Ok(()));
        assert!(body("return await x", false).is_err());
    }

    #[test]
    fn checking_runs_nothing() {
        assert_eq!(expression("(() => { while (true) {} })()"), Ok(()));
        assert_eq!(body("while (true) {}", false), Ok(()));
    }
}
