// Example texts, each with questions that it answers.

export const TEXTS = [
  {
    title: "How whisky is made",
    passage:
      "A copper still is filled with wash, a weak beer of about eight percent alcohol. Heated slowly, the alcohol " +
      "turns to vapour before the water does, rises through the neck and is cooled back to liquid in a coil called " +
      "the worm. The first drops, the foreshots, are put aside because they taste harsh. The stillman keeps only the " +
      "heart of the run, which is filled into oak casks and left to rest for at least three years. Each year about " +
      "two percent of it evaporates through the wood; distillers call this loss the angels' share.",
    questions: ["What is the lost whisky called?", "How long does it rest in casks?", "Why are the foreshots put aside?"],
  },
  {
    title: "The harbour bridge",
    passage:
      "Work on the Sydney Harbour Bridge began in July 1923 and took eight years. Its two half arches were built out " +
      "from opposite shores and held back by steel cables until they met in August 1930. The bridge was opened in " +
      "March 1932 with a deck forty-nine metres wide, which made it the widest long-span bridge in the world. Around " +
      "six million rivets hold it together, and keeping it painted takes a crew all year round.",
    questions: ["When was the bridge opened?", "How many rivets hold it together?", "What held the half arches back?"],
  },
  {
    title: "Bees in winter",
    passage:
      "Honey bees do not sleep through the winter. When it grows cold they gather in a cluster around the queen and " +
      "shiver with their flight muscles, which keeps the middle of the cluster near thirty-five degrees. Bees on the " +
      "outside slowly change places with those inside, so that none of them freezes. A colony eats about fifteen " +
      "kilograms of honey before spring, and beekeepers therefore leave enough of it in the hive in autumn.",
    questions: ["How do bees stay warm?", "How much honey does a colony eat?", "What do bees gather around?"],
  },
];
