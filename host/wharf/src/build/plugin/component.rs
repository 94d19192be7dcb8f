//! From a core module to a component that is a plugin.

use wharf_policy::{Engine, Plugin};
use wit_component::ComponentEncoder;

use crate::build::BuildError;

/// Makes a component of a module in which wit-bindgen left the description of its
/// world.
pub(super) fn encode(module: &[u8], package: &str) -> Result<Vec<u8>, BuildError> {
    let encoder = ComponentEncoder::default().validate(true).module(module);
    encoder
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| BuildError::Componentise {
            package: package.to_owned(),
            cause: format!("{error:#}"),
        })
}

/// Looks at a component as a host does that is to load it.
pub(super) fn examine(component: &[u8], package: &str) -> Result<(), BuildError> {
    let engine = Engine::new(None)?;
    Plugin::new(&engine, component).map_err(|source| BuildError::Plugin {
        package: package.to_owned(),
        source,
    })?;
    Ok(())
}
