// SPDX-License-Identifier: LGPL-2.1-or-later
//! Records the commit and its date, which the plugin reports.

fn main() {
    gst_plugin_version_helper::info()
}
