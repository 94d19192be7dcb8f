//! The attribute's arguments, as the builder calls that make the manifest.

use proc_macro2::TokenStream;
use quote::quote_spanned;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{Error, Ident, LitInt, LitStr, Result, Token, bracketed};

use crate::size::parse_kib;

/// What stands in the attribute's brackets.
#[derive(Default)]
pub(crate) struct Arguments {
    /// The image's name, if it is not the binary's.
    pub(crate) name: Option<LitStr>,
    /// Calls of `Manifest`'s builder, each with the span of what it is about.
    pub(crate) builders: Vec<TokenStream>,
}

impl Parse for Arguments {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut arguments = Self::default();
        let (mut keys, mut devices) = (Vec::new(), Vec::new());
        while !input.is_empty() {
            let key: Ident = input.parse()?;
            refuse_double(&mut keys, key.to_string(), &key)?;
            input.parse::<Token![=]>()?;
            match key.to_string().as_str() {
                "name" => arguments.name = Some(input.parse()?),
                "memory_min" => arguments.builders.push(size(input, "with_memory_min_kib")?),
                "state" => {
                    let schema: LitInt = input.parse()?;
                    let number: u32 = schema.base10_parse()?;
                    arguments.builders.push(quote_spanned! { schema.span() =>
                        .with_state_schema(#number)
                    });
                }
                "stack" => arguments.builders.push(size(input, "with_stack_kib")?),
                "block" => arguments.devices(input, &mut devices, "Block")?,
                "stream" => arguments.devices(input, &mut devices, "Stream")?,
                "net" => arguments.devices(input, &mut devices, "Net")?,
                "entropy" => arguments.devices(input, &mut devices, "Entropy")?,
                "console" => arguments.devices(input, &mut devices, "Console")?,
                _ => return Err(Error::new(key.span(), UNKNOWN_KEY)),
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(arguments)
    }
}

const UNKNOWN_KEY: &str = "expected `name`, `memory_min`, `stack`, `state`, `block`, `stream`, `net`, `entropy` or `console`";

impl Arguments {
    /// Reads a list of device names of one kind.
    fn devices(
        &mut self,
        input: ParseStream<'_>,
        seen: &mut Vec<String>,
        kind: &str,
    ) -> Result<()> {
        let list;
        bracketed!(list in input);
        for name in Punctuated::<LitStr, Token![,]>::parse_terminated(&list)? {
            refuse_double(seen, name.value(), &name)?;
            let kind = Ident::new(kind, name.span());
            self.builders.push(quote_spanned! { name.span() =>
                .with_device(::wharf::__rt::DeviceKind::#kind, #name)
            });
        }
        Ok(())
    }
}

/// Reads a size, and makes a call of the builder method that takes it in KiB.
fn size(input: ParseStream<'_>, method: &str) -> Result<TokenStream> {
    let text: LitStr = input.parse()?;
    let kib = parse_kib(&text.value()).map_err(|message| Error::new(text.span(), message))?;
    let method = Ident::new(method, text.span());
    Ok(quote_spanned! { text.span() => .#method(#kib) })
}

/// Notes a name, or refuses it when it was there before.
fn refuse_double(seen: &mut Vec<String>, name: String, at: &impl quote::ToTokens) -> Result<()> {
    if seen.contains(&name) {
        return Err(Error::new_spanned(at, format!("`{name}` is there twice")));
    }
    seen.push(name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Arguments;

    fn check(input: &str, expected: &str) {
        let arguments: Arguments = syn::parse_str(input).unwrap();
        let builders: String = arguments.builders.iter().map(ToString::to_string).collect();
        assert_eq!(builders.replace(' ', ""), expected);
    }

    #[test]
    fn each_argument_is_a_builder_call() {
        check("", "");
        check("name = \"kv\"", "");
        check(
            r#"memory_min = "8MiB", stack = "64KiB","#,
            ".with_memory_min_kib(8192u32).with_stack_kib(64u32)",
        );
        check("state = 2", ".with_state_schema(2u32)");
        check(
            r#"block = ["data"], net = []"#,
            r#".with_device(::wharf::__rt::DeviceKind::Block,"data")"#,
        );
    }

    #[test]
    fn wrong_arguments_are_explained() {
        let cases = [
            ("color = \"red\"", "expected `name`"),
            ("stack = \"64\"", "needs a unit"),
            ("stack = 64", "expected string literal"),
            (
                "stack = \"1KiB\", stack = \"2KiB\"",
                "`stack` is there twice",
            ),
            (r#"block = ["a"], net = ["a"]"#, "`a` is there twice"),
            ("block = \"a\"", "expected square brackets"),
        ];
        for (input, part) in cases {
            let error = syn::parse_str::<Arguments>(input)
                .err()
                .unwrap()
                .to_string();
            assert!(error.contains(part), "{input}: {error}");
        }
    }
}
