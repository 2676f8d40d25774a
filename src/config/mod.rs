//! What a person may say: options, URLs, credentials, sizes. Parsed once, typed from then on.
//!
//! Nothing here does I/O but the reading of a credentials file.

pub mod credentials;
pub mod endpoint;
mod keys;
pub mod options;
pub mod size;
pub mod url;

pub use credentials::{Ambient, CredentialProvider, CredentialSource, Credentials, Environment};
pub use options::{OptionError, Options, Scope, is_secret, split_secrets};
pub use url::{Location, Scheme};
