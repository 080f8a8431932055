// SPDX-License-Identifier: LGPL-2.1-or-later
//! The documents agree with the sources: elements, errors, commands of the manual, links. The sources keep to
//! the order of their layers.

mod documents;
mod elements;
mod errors;
mod layers;
mod manual;
