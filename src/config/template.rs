//! Templates of printed lines (`--output template=…`).

use super::value::must_be;

/// Maximum length of a template, in bytes. Each line is printed with its text.
const TEXT_MAX_BYTES: usize = 1024;

/// The fields, by their names.
const FIELDS: [(&str, Field); 5] = [
    ("service", Field::Service),
    ("replica", Field::Replica),
    ("instance", Field::Instance),
    ("time", Field::Time),
    ("line", Field::Line),
];

/// A property of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Name of the service.
    Service,
    /// Number of the replica.
    Replica,
    /// Identifier of the container's run.
    Instance,
    /// Time of the line, in the zone of the command.
    Time,
    /// The line itself.
    Line,
}

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Text that is printed as it is.
    Text(String),
    /// The value of a field.
    Field(Field),
}

/// Text with fields that describes how a line is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

// === impl Template ===

impl Template {
    /// Parses a text with fields such as `{line}`. `{{` and `}}` stand for braces, `\t` for a tab.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let fits = (1..=TEXT_MAX_BYTES).contains(&text.len());
        must_be(fits.then_some(()), &format!("a template of 1 to {TEXT_MAX_BYTES} bytes"))?;
        let (mut parts, mut literal) = (Vec::new(), String::new());
        let mut rest = (1..).zip(text.chars()).peekable();
        while let Some((column, c)) = rest.next() {
            let next = rest.peek().map(|(_, next)| *next);
            match (c, next) {
                ('{', Some('{')) | ('}', Some('}')) => {
                    rest.next();
                    literal.push(c);
                }
                ('\\', Some('t')) => {
                    rest.next();
                    literal.push('\t');
                }
                ('{', _) => {
                    let field = field(&mut rest, column)?;
                    if !literal.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Field(field));
                }
                ('}', _) => {
                    return Err(format!(
                        "must be a template: }} at column {column} closes nothing; write }}}}"
                    ));
                }
                (c, _) if c.is_control() => {
                    return Err(format!(
                        "must be a template without control characters, and has one at column {column}"
                    ));
                }
                _ => literal.push(c),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self { parts })
    }

    /// Returns the template with a time and a space before the line, or before everything if it has no line.
    /// A template that has a time stays as it is.
    pub(crate) fn with_time(&self) -> Self {
        let mut parts = self.parts.clone();
        if !self.has_time() {
            let at = parts.iter().position(|part| *part == Part::Field(Field::Line)).unwrap_or_default();
            parts.splice(at..at, [Part::Field(Field::Time), Part::Text(" ".to_owned())]);
        }
        Self { parts }
    }

    /// Returns whether lines are printed with their times.
    pub(super) fn has_time(&self) -> bool {
        self.parts.contains(&Part::Field(Field::Time))
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }
}

/// Reads the name of a field that begins at `column`, and its closing brace.
fn field(rest: &mut impl Iterator<Item = (usize, char)>, column: usize) -> Result<Field, String> {
    let mut name = String::new();
    for (_, c) in rest {
        if c == '}' {
            let found = FIELDS.iter().find(|(known, _)| *known == name);
            return found.map(|(_, field)| *field).ok_or_else(|| {
                let names = FIELDS.map(|(name, _)| format!("{{{name}}}")).join(", ");
                format!(
                    "must be a template: there is no field {{{name}}} (column {column}); the fields are {names}"
                )
            });
        }
        name.push(c);
    }
    Err(format!("must be a template: the {{ at column {column} is not closed; {{{{ stands for a brace"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_text_are_parsed() {
        let parts = |text: &str| Template::parse(text).unwrap().parts;
        let text = |text: &str| Part::Text(text.to_owned());
        assert_eq!(
            parts("{time} {service}/{replica} [{instance}]\\t{line}"),
            [
                Part::Field(Field::Time),
                text(" "),
                Part::Field(Field::Service),
                text("/"),
                Part::Field(Field::Replica),
                text(" ["),
                Part::Field(Field::Instance),
                text("]\t"),
                Part::Field(Field::Line),
            ]
        );
        assert_eq!(parts("{{{line}}} ä"), [text("{"), Part::Field(Field::Line), text("} ä")]);
        assert!(
            Template::parse("{time}").unwrap().has_time() && !Template::parse("{line}").unwrap().has_time()
        );
    }

    #[test]
    fn time_is_added_before_the_line_once() {
        for (text, expected) in [
            ("{service}: {line}", "{service}: {time} {line}"),
            ("{service}", "{time} {service}"),
            ("{line} {time}", "{line} {time}"),
        ] {
            // Adjacent texts count as one.
            let shape = |template: &Template| -> String {
                let shape = |part: &Part| match part {
                    Part::Text(text) => text.clone(),
                    Part::Field(field) => format!("{{{field:?}}}"),
                };
                template.parts.iter().map(shape).collect()
            };
            let added = Template::parse(text).unwrap().with_time();
            assert_eq!(shape(&added), shape(&Template::parse(expected).unwrap()), "{text}");
        }
    }

    #[test]
    fn invalid_template_names_column_and_fields() {
        let long = "x".repeat(TEXT_MAX_BYTES + 1);
        for (text, expected) in [
            ("{line", "the { at column 1 is not closed"),
            (
                "a {pod} {line}",
                "no field {pod} (column 3); the fields are {service}, {replica}, {instance}, {time}, {line}",
            ),
            ("{}", "no field {} (column 1)"),
            ("{line} }", "} at column 8 closes nothing"),
            ("\u{1b}[2J{line}", "control characters, and has one at column 1"),
            ("", "of 1 to 1024 bytes"),
            (long.as_str(), "of 1 to 1024 bytes"),
        ] {
            let error = Template::parse(text).expect_err(text);
            assert!(error.starts_with("must be a template") && error.contains(expected), "{error}");
        }
    }
}
