//! From text to typed expression: the grammar and the types.
//!
//! A recursive descent whose only recursion is the parenthesis, so
//! [`DEPTH_MAX`] bounds the stack. Each message names what to write instead.

use super::error::{FilterError, nearest_listed, repeated};
use super::expression::{Expression, Literal, Operator, Term, Test};
use super::scan::{Scanner, is_name, is_rfc3339_shaped, is_space, is_value};
use super::schema::{Field, FieldType, Schema};
use super::{DEPTH_MAX, TERMS_MAX, TEXT_BYTES_MAX};

const KEYWORDS: [&str; 3] = ["AND", "OR", "NOT"];

/// Parses a filter; nothing if the text is empty.
pub(super) fn parse(
    text: &str,
    schema: &'static Schema,
) -> Result<Option<Expression>, FilterError> {
    if text.len() > TEXT_BYTES_MAX {
        let message = format!(
            "filter is {} bytes, above the bound of {TEXT_BYTES_MAX}; shorten it",
            text.len()
        );
        return Err(FilterError::at(text, TEXT_BYTES_MAX, message));
    }
    let scan = Scanner { text, position: 0 };
    let mut parser = Parser {
        scan,
        schema,
        terms: 0,
        depth: 0,
    };
    parser.scan.skip_space();
    if parser.scan.peek().is_none() {
        return Ok(None);
    }
    let expression = parser.conjunction()?;
    match parser.scan.peek() {
        None => Ok(Some(expression)),
        Some(')') => Err(parser.fault_here("no parenthesis is open here; remove this one")),
        Some(_) => Err(parser.missing_operator()),
    }
}

struct Parser<'t> {
    scan: Scanner<'t>,
    schema: &'static Schema,
    terms: usize,
    depth: usize,
}

/// The operator as written: `:` asks for something else in each type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Has,
    Compare(Operator),
}

/// A value as written, before the field's type gives it a meaning.
struct Given<'t> {
    offset: usize,
    content: Content<'t>,
}

enum Content<'t> {
    Star,
    Word(&'t str),
    Quoted(String),
}

/// One part of a field path, with where it ends.
struct Segment {
    name: String,
    is_quoted: bool,
    end: usize,
}

impl<'t> Parser<'t> {
    fn conjunction(&mut self) -> Result<Expression, FilterError> {
        let mut parts = vec![self.disjunction()?];
        while self.keyword("AND")? {
            parts.push(self.disjunction()?);
        }
        Ok(Expression::all(parts))
    }

    fn disjunction(&mut self) -> Result<Expression, FilterError> {
        let mut parts = vec![self.negation()?];
        while self.keyword("OR")? {
            parts.push(self.negation()?);
        }
        Ok(Expression::any(parts))
    }

    fn negation(&mut self) -> Result<Expression, FilterError> {
        self.scan.skip_space();
        let is_negated = if self.scan.eat("-") {
            if self.scan.peek().is_some_and(is_space) {
                return Err(self.fault_here("write - right before its condition, without space"));
            }
            true
        } else {
            self.keyword("NOT")?
        };
        if is_negated && (self.scan.peek() == Some('-') || self.scan.word_ahead(is_name) == "NOT") {
            return Err(self.fault_here("write one NOT or - before a condition, not two"));
        }
        let inner = if self.scan.peek() == Some('(') {
            self.group()?
        } else {
            Expression::Term(self.term()?)
        };
        self.end_of_condition()?;
        Ok(if is_negated { inner.negated() } else { inner })
    }

    fn group(&mut self) -> Result<Expression, FilterError> {
        let open = self.scan.position;
        self.scan.eat("(");
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let message = format!("parentheses nest deeper than {DEPTH_MAX}; flatten the filter");
            return Err(self.scan.fault(open, message));
        }
        let inner = self.conjunction()?;
        self.depth -= 1;
        match self.scan.peek() {
            Some(')') => {
                self.scan.eat(")");
                Ok(inner)
            }
            None => Err(self
                .scan
                .fault(open, "this parenthesis is never closed; write )")),
            Some(_) => Err(self.missing_operator()),
        }
    }

    fn term(&mut self) -> Result<Term, FilterError> {
        self.start_of_condition()?;
        let start = self.scan.position;
        self.terms += 1;
        if self.terms > TERMS_MAX {
            let message = format!("filter has more than {TERMS_MAX} conditions; split the request");
            return Err(self.scan.fault(start, message));
        }
        let (field, key) = self.path()?;
        let path = &self.scan.text[start..self.scan.position];
        self.scan.skip_space();
        let sign_offset = self.scan.position;
        let sign = self.sign(path)?;
        self.scan.skip_space();
        let given = self.given(field)?;
        self.typed(field, key, (sign, sign_offset), given)
    }

    /// Takes the keyword and the space around it, if it is here.
    fn keyword(&mut self, keyword: &str) -> Result<bool, FilterError> {
        self.scan.skip_space();
        if self.scan.word_ahead(is_name) != keyword {
            return Ok(false);
        }
        self.scan.eat(keyword);
        if self.scan.peek().is_some_and(|next| !is_space(next)) {
            return Err(self.fault_here(format!("write a space after {keyword}")));
        }
        self.scan.skip_space();
        Ok(true)
    }

    /// Refuses whatever cannot begin a condition.
    fn start_of_condition(&self) -> Result<(), FilterError> {
        let word = self.scan.word_ahead(is_name);
        let message = match self.scan.peek() {
            None => "a condition is missing at the end".to_owned(),
            Some(')') => "a condition is missing before )".to_owned(),
            Some('"' | '\'') => {
                "a condition begins with a field name, which isn't quoted".to_owned()
            }
            Some('!') => "write NOT, or != between a field and its value".to_owned(),
            Some(_) if KEYWORDS.contains(&word) => format!("a condition is missing before {word}"),
            Some(next) if !is_name(next) => {
                format!(
                    "unexpected {}; a condition begins with a field name",
                    one(next)
                )
            }
            Some(_) => return Ok(()),
        };
        Err(self.fault_here(message))
    }

    /// Refuses whatever clings to a condition's end.
    fn end_of_condition(&self) -> Result<(), FilterError> {
        let message = match self.scan.peek() {
            None | Some(')') => return Ok(()),
            Some(next) if is_space(next) => return Ok(()),
            Some('*') => "* stands alone, as in field:*; there are no patterns".to_owned(),
            Some('&' | '|') => "write AND or OR between conditions".to_owned(),
            Some(next) => format!(
                "unexpected {}; put a space between conditions, and text other than letters, \
                 digits, _ - . in quotes",
                one(next),
            ),
        };
        Err(self.fault_here(message))
    }

    fn missing_operator(&self) -> FilterError {
        let word = self.scan.word_ahead(is_name);
        let upper = word.to_ascii_uppercase();
        self.fault_here(if upper == "AND" || upper == "OR" {
            format!("write {upper} in capitals")
        } else if word == "NOT" || self.scan.peek() == Some('-') {
            "write AND or OR before this negation".to_owned()
        } else if matches!(self.scan.peek(), Some('&' | '|')) {
            "write AND or OR between conditions".to_owned()
        } else {
            "write AND or OR between conditions, and quotes around text with spaces".to_owned()
        })
    }

    fn path(&mut self) -> Result<(&'static Field, Option<Box<str>>), FilterError> {
        let start = self.scan.position;
        let mut segments = vec![self.segment()?];
        while self.scan.eat(".") {
            segments.push(self.segment()?);
        }
        let path = &self.scan.text[start..self.scan.position];

        // The longest run of plain names that is a field; what follows is a key.
        let names = segments
            .iter()
            .take_while(|segment| !segment.is_quoted)
            .count();
        let known = (1..=names).rev().find_map(|count| {
            let name = &self.scan.text[start..segments[count - 1].end];
            Some((self.schema.field(name)?, count))
        });
        let Some((field, count)) = known else {
            let word = &self.scan.text[start..segments[names.max(1) - 1].end];
            let message = format!(
                "unknown field {}; known fields: {}",
                repeated(path),
                nearest_listed(word, self.schema.fields.iter().map(|field| field.name)),
            );
            return Err(self.scan.fault(start, message));
        };
        match (field.field_type, &mut segments[count..]) {
            (_, []) => Ok((field, None)),
            (FieldType::TextMap, [key]) => {
                Ok((field, Some(std::mem::take(&mut key.name).into_boxed_str())))
            }
            (FieldType::TextMap, _) => {
                let message = format!("quote a key that has a dot: {}.\"some.key\"", field.name);
                Err(self.scan.fault(segments[count - 1].end + 1, message))
            }
            (of, _) => {
                let message = format!(
                    "field {} has nothing inside, as it is of type {of}; remove what follows it",
                    field.name,
                );
                Err(self.scan.fault(segments[count - 1].end, message))
            }
        }
    }

    fn segment(&mut self) -> Result<Segment, FilterError> {
        let is_quoted = matches!(self.scan.peek(), Some('"' | '\''));
        let name = if is_quoted {
            self.scan.quoted()?
        } else {
            self.scan.word(is_name).to_owned()
        };
        if name.is_empty() && !is_quoted {
            return Err(self.fault_here("a name is missing after the dot"));
        }
        Ok(Segment {
            name,
            is_quoted,
            end: self.scan.position,
        })
    }

    fn sign(&mut self, path: &str) -> Result<Sign, FilterError> {
        for (wrong, right) in [("==", "="), ("<>", "!="), ("=~", ":"), ("!~", "NOT and :")] {
            if self.scan.rest().starts_with(wrong) {
                return Err(self.fault_here(format!("{wrong} is no operator here; write {right}")));
            }
        }
        // Longer signs first, so that `<=` isn't read as `<`.
        for operator in [
            Operator::NotEqual,
            Operator::LessOrEqual,
            Operator::GreaterOrEqual,
            Operator::Equal,
            Operator::Less,
            Operator::Greater,
        ] {
            if self.scan.eat(operator.sign()) {
                return Ok(Sign::Compare(operator));
            }
        }
        if self.scan.eat(":") {
            return Ok(Sign::Has);
        }
        let message = format!(
            "an operator is missing after {}; write one of = != < <= > >= :",
            repeated(path)
        );
        Err(self.fault_here(message))
    }

    fn given(&mut self, field: &Field) -> Result<Given<'t>, FilterError> {
        let offset = self.scan.position;
        let content = match self.scan.peek() {
            Some('*') => {
                self.scan.eat("*");
                Content::Star
            }
            Some('"' | '\'') => Content::Quoted(self.scan.quoted()?),
            Some('(') => {
                let name = field.name;
                let message =
                    format!("write each comparison out, as in ({name} = a OR {name} = b)");
                return Err(self.fault_here(message));
            }
            _ => Content::Word(self.scan.word(is_value)),
        };
        match content {
            Content::Word("") => Err(self.fault_here(format!(
                "a value is missing after the operator; put text other than letters, digits, \
                 _ - . in quotes ({})",
                field.name,
            ))),
            Content::Word(word) if KEYWORDS.contains(&word) => Err(self.scan.fault(
                offset,
                format!("a value is missing before {word}; write \"{word}\" to mean the text"),
            )),
            content => Ok(Given { offset, content }),
        }
    }

    /// Gives the parts of a condition their types.
    fn typed(
        &self,
        field: &'static Field,
        key: Option<Box<str>>,
        (sign, sign_offset): (Sign, usize),
        given: Given<'_>,
    ) -> Result<Term, FilterError> {
        let name = field.name;
        let refuse_sign = |fix: &str| {
            let of = if key.is_some() {
                FieldType::Text
            } else {
                field.field_type
            };
            let message = format!("this operator doesn't fit {name}, of type {of}; write {fix}");
            Err(self.scan.fault(sign_offset, message))
        };
        let test = match (sign, &given.content) {
            (Sign::Has, Content::Star) => Test::Present,
            (Sign::Compare(_), Content::Star) => {
                let message = format!("* only asks for presence; write {name}:*");
                return Err(self.scan.fault(given.offset, message));
            }
            _ if field.field_type == FieldType::Text || key.is_some() => match sign {
                Sign::Has => Test::Contains(given.into_text()),
                Sign::Compare(operator @ (Operator::Equal | Operator::NotEqual)) => {
                    Test::Compare(operator, Literal::Text(given.into_text()))
                }
                Sign::Compare(_) => return refuse_sign("= or != or :"),
            },
            _ => match (field.field_type, sign) {
                (FieldType::TextSet, Sign::Has) => Test::Member(given.into_text()),
                (FieldType::TextSet, Sign::Compare(_)) => {
                    return refuse_sign(&format!("{name}:value for a member"));
                }
                (FieldType::TextMap, Sign::Has) => {
                    if matches!(given.content, Content::Word(word) if word.contains('.')) {
                        let message = format!("quote a key that has a dot: {name}:\"some.key\"");
                        return Err(self.scan.fault(given.offset, message));
                    }
                    return Ok(Term {
                        field,
                        key: Some(given.into_text()),
                        test: Test::Present,
                    });
                }
                (FieldType::TextMap, Sign::Compare(_)) => {
                    return refuse_sign(&format!("{name}.key for one entry, or {name}:key"));
                }
                (FieldType::Enum(_) | FieldType::Boolean, Sign::Compare(operator))
                    if !matches!(operator, Operator::Equal | Operator::NotEqual) =>
                {
                    return refuse_sign("= or !=");
                }
                (FieldType::Enum(_) | FieldType::Boolean, Sign::Has) => {
                    return refuse_sign("= or !=");
                }
                (_, Sign::Has) => return refuse_sign("= != < <= > or >="),
                (_, Sign::Compare(operator)) => {
                    Test::Compare(operator, self.literal(field, &given)?)
                }
            },
        };
        Ok(Term { field, key, test })
    }

    /// Reads the value of a field that is neither text, set nor map.
    fn literal(&self, field: &Field, given: &Given<'_>) -> Result<Literal, FilterError> {
        let name = field.name;
        let refuse = |message: String| Err(self.scan.fault(given.offset, message));
        let (text, is_quoted) = match &given.content {
            Content::Star => ("*", false),
            Content::Word(word) => (*word, false),
            Content::Quoted(text) => (text.as_str(), true),
        };
        match field.field_type {
            FieldType::Enum(names) => {
                let known = names
                    .iter()
                    .find(|(name, _)| *name == text && !is_unspecified(name));
                let Some((_, number)) = known else {
                    let askable = names
                        .iter()
                        .map(|(name, _)| *name)
                        .filter(|name| !is_unspecified(name));
                    return refuse(format!(
                        "unknown value {} of {name}; known values: {}",
                        repeated(text),
                        nearest_listed(text, askable),
                    ));
                };
                let first = names
                    .iter()
                    .find(|(name, of)| of == number && !is_unspecified(name));
                let (name, number) = first.expect("the table has at least the name just found");
                Ok(Literal::Enum(name, *number))
            }
            FieldType::Integer => {
                let digits = text.strip_prefix('-').unwrap_or(text);
                if is_quoted || digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                    return refuse(format!(
                        "{name} is an integer; write decimal digits, unquoted"
                    ));
                }
                match text.parse() {
                    Ok(number) => Ok(Literal::Integer(number)),
                    Err(_) => refuse(format!(
                        "integer is out of range; {name} lies between {} and {}",
                        i64::MIN,
                        i64::MAX,
                    )),
                }
            }
            FieldType::Boolean => match text {
                "true" if !is_quoted => Ok(Literal::Boolean(true)),
                "false" if !is_quoted => Ok(Literal::Boolean(false)),
                _ => refuse(format!(
                    "{name} is a boolean; write true or false, unquoted"
                )),
            },
            FieldType::Time => {
                let time = text.parse::<jiff::Timestamp>().ok();
                // The offset may push a time out of the years that RFC 3339 can write.
                let time = time.filter(|time| {
                    is_quoted && is_rfc3339_shaped(text) && is_rfc3339_shaped(&time.to_string())
                });
                time.map(Literal::Time).map_or_else(
                    || {
                        refuse(format!(
                            "{name} is a time; write it quoted as RFC 3339 with an offset, such \
                             as \"2031-05-17T08:30:00Z\""
                        ))
                    },
                    Ok,
                )
            }
            FieldType::Text | FieldType::TextSet | FieldType::TextMap => {
                Ok(Literal::Text(text.into()))
            }
        }
    }

    fn fault_here(&self, message: impl Into<String>) -> FilterError {
        self.scan.fault(self.scan.position, message)
    }
}

impl Given<'_> {
    fn into_text(self) -> Box<str> {
        match self.content {
            Content::Star => "*".into(),
            Content::Word(word) => word.into(),
            Content::Quoted(text) => text.into(),
        }
    }
}

fn is_unspecified(name: &str) -> bool {
    name == "UNSPECIFIED" || name.ends_with("_UNSPECIFIED")
}

/// Repeats one character in a message.
fn one(character: char) -> String {
    repeated(character.encode_utf8(&mut [0; 4]))
}
