// SPDX-License-Identifier: LGPL-2.1-or-later
//! The documents say what is there: elements, errors, commands of the manual, links; and the sources keep to
//! the order of their layers.

mod documents;
mod elements;
mod errors;
mod layers;
mod manual;
