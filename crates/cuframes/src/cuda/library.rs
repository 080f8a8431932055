// SPDX-License-Identifier: LGPL-2.1-or-later
//! Shared libraries that are opened at run time.

/// A shared library, closed on drop unless it is [leaked](Library::leak).
#[derive(Debug)]
pub struct Library(libloading::Library);

impl Library {
    /// Opens the library with this file name.
    ///
    /// # Errors
    /// Returns the loader's message; it contains the file name in any case.
    ///
    /// # Safety
    /// The initializers of the library must be sound to run on this thread, now.
    pub unsafe fn open(name: &str) -> Result<Self, String> {
        // SAFETY: the caller's contract.
        unsafe { libloading::Library::new(name) }.map(Self).map_err(|e| message(name, &e))
    }

    /// Returns the function with this symbol, or `None` if the library has no such symbol.
    ///
    /// # Safety
    /// `F` must be the function's type. The result must not be called after the library is closed.
    pub unsafe fn find<F: Copy>(&self, symbol: &str) -> Option<F> {
        // SAFETY: the caller's contract.
        unsafe { self.0.get::<F>(symbol.as_bytes()) }.ok().map(|symbol| *symbol)
    }

    /// Keeps the library open until the process ends.
    pub fn leak(self) {
        std::mem::forget(self);
    }
}

/// Returns the loader's message, with the file name in front if the loader leaves it out.
fn message(name: &str, e: &libloading::Error) -> String {
    use std::error::Error;
    let text = e.source().map_or_else(|| e.to_string(), |source| source.to_string());
    if text.contains(name) { text } else { format!("{name}: {text}") }
}
