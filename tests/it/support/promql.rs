//! A parser for the parts of PromQL that show which metrics and labels a query uses.

/// A metric selector of a query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(crate) metric: String,
    /// Label, operator, value.
    pub(crate) matchers: Vec<(String, String, String)>,
}

/// The selectors and labels of a query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) selectors: Vec<Selector>,
    /// Labels of groupings and joins.
    pub(crate) labels: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Sign(String),
}

/// Keywords before a list of labels.
const BEFORE_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Keywords between expressions.
const BETWEEN: [&str; 4] = ["and", "or", "unless", "bool"];

/// The functions and aggregations that our queries use.
const FUNCTIONS: [&str; 10] = [
    "sum",
    "min",
    "max",
    "count",
    "rate",
    "increase",
    "changes",
    "last_over_time",
    "histogram_quantile",
    "time",
];

impl Token {
    fn is(&self, sign: &str) -> bool {
        matches!(self, Self::Sign(other) if other == sign)
    }
}

impl Query {
    /// Parses a query.
    ///
    /// # Errors
    /// Returns the part that is not understood.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let mut query = Self::default();
        let mut tokens = tokens(text)?.into_iter().peekable();
        while let Some(token) = tokens.next() {
            let Token::Word(word) = token else { continue };
            if BEFORE_LABELS.contains(&&*word) {
                for token in tokens.by_ref().take_while(|token| !token.is(")")) {
                    if let Token::Word(label) = token {
                        query.labels.push(label);
                    }
                }
            } else if FUNCTIONS.contains(&&*word) || BETWEEN.contains(&&*word) {
                // Operators apply to expressions that are parsed separately.
            } else if tokens.peek().is_some_and(|token| token.is("(")) {
                return Err(format!("no function {word}"));
            } else {
                let mut selector = Selector { metric: word, matchers: Vec::new() };
                if tokens.next_if(|token| token.is("{")).is_some() {
                    let inside: Vec<_> = tokens.by_ref().take_while(|token| !token.is("}")).collect();
                    selector.matchers = matchers(&inside)?;
                }
                query.selectors.push(selector);
            }
        }
        Ok(query)
    }
}

fn matchers(tokens: &[Token]) -> Result<Vec<(String, String, String)>, String> {
    let each = tokens.split(|token| token.is(",")).map(|one| match one {
        [Token::Word(label), Token::Sign(operator), Token::Text(value)] => {
            Ok((label.clone(), operator.clone(), value.clone()))
        }
        other => Err(format!("no matcher: {other:?}")),
    });
    each.collect()
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = |more: fn(char) -> bool| rest.find(|c: char| !more(c)).unwrap_or(rest.len());
        let length = match first {
            '"' => {
                let end = rest[1..].find('"').ok_or("a text without an end")?;
                found.push(Token::Text(rest[1..=end].to_owned()));
                end + 2
            }
            '[' => rest.find(']').ok_or("a range without an end")? + 1,
            c if c.is_ascii_alphabetic() || c == '_' => {
                let end = end(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
                found.push(Token::Word(rest[..end].to_owned()));
                end
            }
            c if c.is_ascii_digit() => end(|c| c.is_ascii_alphanumeric() || c == '.'),
            c if c.is_whitespace() => c.len_utf8(),
            _ => {
                let two = rest.get(..2).filter(|two| ["=~", "!~", "!=", "==", ">=", "<="].contains(two));
                let sign = two.unwrap_or(&rest[..first.len_utf8()]);
                found.push(Token::Sign(sign.to_owned()));
                sign.len()
            }
        };
        rest = &rest[length..];
    }
    Ok(found)
}

#[test]
fn queries_are_read() {
    let query =
        Query::read("sum by (a, b) (rate(one_total{a=\"x,}\",c=~\"$y\"}[5m])) / 2 > 0.5 and two < 3h")
            .unwrap();
    let matchers = [("a", "=", "x,}"), ("c", "=~", "$y")];
    let matchers = matchers.map(|(label, operator, value)| (label.into(), operator.into(), value.into()));
    let one = Selector { metric: "one_total".into(), matchers: matchers.into() };
    let two = Selector { metric: "two".into(), matchers: Vec::new() };
    assert_eq!(query, Query { selectors: vec![one, two], labels: vec!["a".into(), "b".into()] });
    assert!(Query::read("summ(one)").is_err());
    assert!(Query::read("one{a}").is_err());
}
