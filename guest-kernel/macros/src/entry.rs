//! The items that the attribute emits.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::{Error, ItemFn, Result, ReturnType, Type};

use crate::arguments::Arguments;

/// Emits the function as it is, an entry point that calls it, and the note with
/// the manifest.
pub(crate) fn expand(arguments: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let arguments: Arguments = syn::parse2(arguments)?;
    let function: ItemFn = syn::parse2(item).map_err(|error| {
        Error::new(
            error.span(),
            "#[wharf::main] goes on a function: `fn main()`",
        )
    })?;
    check(&function)?;
    let entry = entry(&function);
    let note = note(&arguments);
    Ok(quote! {
        // A function of its own in a fault report, whatever it calls.
        #[inline(never)]
        #function

        const _: () = {
            #entry
            #note
        };
    })
}

/// Refuses a signature that cannot be a main function's.
fn check(function: &ItemFn) -> Result<()> {
    let signature = &function.sig;
    let refuse = |at: &dyn ToTokens, message| Err(Error::new_spanned(at, message));
    if !signature.generics.params.is_empty() {
        return refuse(
            &signature.generics,
            "a main function takes no generic parameters",
        );
    }
    if let Some(constness) = &signature.constness {
        return refuse(
            constness,
            "a main function runs once, at run time: not `const`",
        );
    }
    if let Some(unsafety) = &signature.unsafety {
        return refuse(
            unsafety,
            "nobody could keep a promise to an unsafe main function",
        );
    }
    if let Some(abi) = &signature.abi {
        return refuse(
            abi,
            "a main function is no `extern` one; the entry point is made for it",
        );
    }
    match (signature.asyncness.is_some(), signature.inputs.len()) {
        (_, 0) | (true, 1) => Ok(()),
        (true, _) => refuse(
            &signature.inputs,
            "an async main function takes nothing or one `wharf::Spawner`",
        ),
        (false, _) => refuse(
            &signature.inputs,
            "a main function takes nothing; its arguments are in `wharf::args()`, \
             and only an `async fn` can take a `wharf::Spawner`",
        ),
    }
}

fn entry(function: &ItemFn) -> TokenStream {
    let signature = &function.sig;
    let name = &signature.ident;
    // The type `!` cannot be named in an implementation of `Termination`, but
    // its values, which there are none of, become any other type's.
    let outcome = match &signature.output {
        ReturnType::Type(_, output) if matches!(**output, Type::Never(_)) => {
            quote!(::core::convert::Infallible)
        }
        _ => quote!(_),
    };
    let run = match (signature.asyncness.is_some(), signature.inputs.is_empty()) {
        (false, _) => quote! {
            ::wharf::__rt::start(boot, || { let outcome: #outcome = #name(); outcome })
        },
        (true, true) => quote! {
            ::wharf::__rt::start_async(boot, |_| async {
                let outcome: #outcome = #name().await;
                outcome
            })
        },
        (true, false) => quote! {
            ::wharf::__rt::start_async(boot, |spawner| async move {
                let outcome: #outcome = #name(spawner).await;
                outcome
            })
        },
    };
    quote! {
        #[allow(unsafe_code, unreachable_code, clippy::let_unit_value)]
        #[unsafe(no_mangle)]
        extern "C" fn _start(boot: ::wharf::__rt::BootPointer) -> ! {
            #run
        }
    }
}

fn note(arguments: &Arguments) -> TokenStream {
    let builders = &arguments.builders;
    let name = match &arguments.name {
        Some(name) => name.to_token_stream(),
        None => quote!(::core::env!("CARGO_BIN_NAME")),
    };
    quote! {
        #[allow(unsafe_code)]
        #[used]
        #[unsafe(link_section = ".note.wharf")]
        static NOTE: ::wharf::__rt::Note = ::wharf::__rt::Note::new(
            ::wharf::__rt::Manifest::new(#name, ::core::env!("CARGO_PKG_VERSION")) #(#builders)*
        );
    }
}

#[cfg(test)]
mod tests {
    use quote::quote;

    use super::expand;

    fn refusal(item: proc_macro2::TokenStream) -> String {
        expand(quote!(), item)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn main_functions_are_accepted() {
        let functions = [
            quote!(
                fn main() {}
            ),
            quote!(
                fn main() -> ! {
                    loop {}
                }
            ),
            quote!(
                pub async fn run() -> Result<(), E> {
                    Ok(())
                }
            ),
            quote!(
                async fn main(spawner: Spawner) {}
            ),
        ];
        for function in functions {
            let text = function.to_string();
            assert_eq!(refusal(function), "", "{text}");
        }
    }

    #[test]
    fn other_items_are_refused() {
        assert!(
            refusal(quote!(
                struct Main;
            ))
            .contains("goes on a function")
        );
        assert!(
            refusal(quote!(
                fn main(spawner: Spawner) {}
            ))
            .contains("wharf::args()")
        );
        assert!(
            refusal(quote!(
                async fn main(a: A, b: B) {}
            ))
            .contains("one `wharf::Spawner`")
        );
        assert!(
            refusal(quote!(
                fn main<T>() {}
            ))
            .contains("generic")
        );
        assert!(
            refusal(quote!(
                unsafe fn main() {}
            ))
            .contains("unsafe")
        );
        assert!(
            refusal(quote!(
                const fn main() {}
            ))
            .contains("const")
        );
        assert!(
            refusal(quote!(
                extern "C" fn main() {}
            ))
            .contains("extern")
        );
    }
}
