/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reads the frames of a key in a C program, with an appsink.
 *
 *   cc appsink.c -o appsink $(pkg-config --cflags --libs gstreamer-app-1.0 gstreamer-video-1.0)
 *   ./appsink cam1 10
 *
 * The pixels are in the memory of the publisher, which is mapped read-only into this process. They stay
 * valid until the sample is released. */

#include <gst/app/gstappsink.h>
#include <gst/gst.h>
#include <gst/video/video.h>
#include <stdlib.h>

/* Prints a frame. Returns 0 on failure. */
static int print_frame(GstSample *sample, long number)
{
    GstVideoInfo info;
    GstVideoFrame frame;

    if (!gst_video_info_from_caps(&info, gst_sample_get_caps(sample)) ||
        !gst_video_frame_map(&frame, &info, gst_sample_get_buffer(sample), GST_MAP_READ)) {
        g_printerr("frame %ld can't be mapped\n", number);
        return 0;
    }
    const guint8 *row = GST_VIDEO_FRAME_PLANE_DATA(&frame, 0);
    g_print("frame %ld: %s %dx%d, first byte %u\n", number,
            gst_video_format_to_string(GST_VIDEO_INFO_FORMAT(&info)), GST_VIDEO_FRAME_WIDTH(&frame),
            GST_VIDEO_FRAME_HEIGHT(&frame), row[0]);
    gst_video_frame_unmap(&frame);
    return 1;
}

int main(int argc, char **argv)
{
    gst_init(&argc, &argv);
    if (argc != 3) {
        g_printerr("usage: %s KEY FRAMES\n", argv[0]);
        return 2;
    }
    const long count = strtol(argv[2], NULL, 10);
    GError *error = NULL;
    /* The caps video/x-raw request host memory. Frames in GPU memory are downloaded. */
    GstElement *pipeline = gst_parse_launch(
        "cuframessrc name=in ! video/x-raw ! appsink name=out max-buffers=1 drop=true", &error);
    if (!pipeline) {
        g_printerr("%s\n", error->message);
        g_error_free(error);
        return 1;
    }
    GstElement *in = gst_bin_get_by_name(GST_BIN(pipeline), "in");
    GstElement *out = gst_bin_get_by_name(GST_BIN(pipeline), "out");
    g_object_set(in, "key", argv[1], NULL);
    gst_element_set_state(pipeline, GST_STATE_PLAYING);

    int ok = 1;
    for (long number = 1; ok && number <= count; number++) {
        GstSample *sample = gst_app_sink_pull_sample(GST_APP_SINK(out));
        if (!sample)
            break; /* end of stream, or an error */
        ok = print_frame(sample, number);
        gst_sample_unref(sample);
    }

    GstBus *bus = gst_element_get_bus(pipeline);
    GstMessage *message = gst_bus_pop_filtered(bus, GST_MESSAGE_ERROR);
    if (message) {
        gst_message_parse_error(message, &error, NULL);
        g_printerr("%s\n", error->message);
        g_error_free(error);
        gst_message_unref(message);
        ok = 0;
    }
    gst_element_set_state(pipeline, GST_STATE_NULL);
    gst_object_unref(bus);
    gst_object_unref(in);
    gst_object_unref(out);
    gst_object_unref(pipeline);
    return ok ? 0 : 1;
}
