# depth_node on ROS 2 Jazzy (Ubuntu 24.04, Python 3.12). Build from the checkout:
#   docker build -t depth_node .
#   docker run --rm --net host depth_node image:=/camera/image_rect camera_info:=/camera/camera_info points:=/lidar/points
# On a Jetson: Dockerfile.jetpack.
FROM ros:jazzy

RUN apt-get update && apt-get install --yes --no-install-recommends \
        python3-pip python3-rich python3-scipy python3-opencv python3-yaml \
        ros-jazzy-tf2-ros-py ros-jazzy-rmw-fastrtps-cpp \
    && rm -rf /var/lib/apt/lists/*
# Ubuntu marks its Python as managed (PEP 668); a container has no other user of it.
RUN python3 -m pip install --no-cache-dir --break-system-packages onnxruntime numba rosbags "numpy>=1.26,<2"

COPY . /ws/src/depth_node
WORKDIR /ws
RUN . /opt/ros/jazzy/setup.sh && colcon build --packages-select depth_node

ENV ORT_DISABLE_TELEMETRY=1
ENTRYPOINT ["/bin/bash", "-c", "source /ws/install/setup.bash && export FASTRTPS_DEFAULT_PROFILES_FILE=$(ros2 pkg prefix depth_node)/share/depth_node/config/fastdds.xml && exec ros2 launch depth_node depth_node.launch.py \"$@\"", "depth_node"]
